"""The models room: pure PyTorch. It knows no Ray, no DeepSpeed and no storage."""
