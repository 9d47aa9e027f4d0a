"""Textures and things of the bundled Freedoom that mazes are made of."""

from __future__ import annotations

# Chosen from freedoom2.wad by farthest mean colour; none is animated, so a place looks the same on return.
# `rich` has bold patterns, `calm` nearly plain colours that a small blurry model can learn in minutes.
WALLS = {
    "rich": (
        "AQLITE07 AQLITE15 AQLITE09 AQLITE11 AQLITE14 AQLITE24 AQLITE03 REDWALL1 STWALL A-CAMO5 MARBFACE "
        "SILVER2 CEMPOIS SMSTONE6 STARBR1 SHAWN03 AQCONC07 CARLLF1 REDWALL CRLWDH6B PANRED AQLITE16 "
        "AQLITE08 AQLITE12"
    ).split(),
    "calm": (
        "PBLUE PORAN PGREEN PRED PWHITE REDWALL1 DOKGRIR DOGLDIR A-CONCTE STWALL SILVER1 A-REDROK "
        "TANROCK2 DOGRMSC GRAYRED ESPIG1 BRICK12 PANEL4 AQCONC17 COMPTILE DOPUNK4 TANROCK8 A-MOSRK2 "
        "ESPIGR1"
    ).split(),
}
FLATS = {
    "rich": (
        "AQF035 AQF043 AQF037 AQF039 AQF041 AQF065 FLAT17 SFLR5_4 SFLR6_4 FLAT22 CRATOP2 FLAT5_3 AQF048 "
        "AQF047 FLAT20 AQF010 FLOOR3_3 FLOOR4_8 AQF062 AQF036 AQF044 AQF042"
    ).split(),
    "calm": (
        "FLOOR1_6 FLOOR1_1 AQF022 AQF067 CRATOP2 FLAT10 FLOOR6_1 FLOOR3_3 FLAT8 CEIL3_1 FLOOR7_2 STEP1 "
        "FLAT5_3 COMP01 CEIL3_5 FLAT3"
    ).split(),
}
PLAIN_FLOOR, PLAIN_CEILING, PLAIN_LIGHT = "FLOOR4_8", "FLAT20", 216
# Things that stand still, cannot be picked up and are slim enough to step beside: pillars, a candelabra, a
# dead tree, a stalagmite, a column, a lamp. (The big tree, 54, fills a square: a walker would never get in.)
LANDMARKS = (30, 31, 32, 33, 35, 43, 47, 48, 2028)
