"""What is to be had on a level of square cells, and what is in the way: what `cells.hunt` asks before every step."""

from __future__ import annotations

from benchmarks.levels.players.cells import Knowledge, cell_of, centre


def doors(scene):
    """The cells whose doors are shut."""
    return {cell_of((bx + ex) / 2, (by + ey) / 2) for (bx, by), (ex, ey), _ in scene.grid.screens}


def maze_goal(lab):
    """The open way to the goal."""
    scene = lab._scene
    return Knowledge(lab._level._maze.open_cells, [tuple(scene.objects[0][1:])], doors(scene) if scene.grid else ())


def good_ones(lab, ledger):
    """The good objects that are left; cells with bad ones are avoided."""
    level, items = lab._level, lab._scene.items
    here = cell_of(*lab.observations()["DEBUG.POS.TRANS"][:2])
    places = {number: (items[number].x, items[number].y) for number in ledger.left()}
    bad = {cell_of(*place) for number, place in places.items() if number >= level.kinds // 2}
    return Knowledge(level._grid.cells, [place for number, place in places.items() if number < level.kinds // 2], bad - {here})


def goals_of(lab, ledger):
    """What the instruction asks for; everything else is avoided."""
    level, items = lab._level, lab._scene.items
    here = cell_of(*lab.observations()["DEBUG.POS.TRANS"][:2])
    places = {number: (items[number].x, items[number].y) for number in ledger.left()}
    wanted = [place for number, place in places.items() if number in level.round.goals]
    wrong = {cell_of(*place) for number, place in places.items() if number not in level.round.goals}
    return Knowledge(level.round.scene.grid.cells, wanted, wrong - {here})


def downhill_to_the_goal(lab):
    """The main path, which leads down and never back."""
    heights, main = lab._level._course.heights, lab._level._course.main
    order = {cell: i for i, cell in enumerate(main)}
    return Knowledge(main, [centre(main[-1])], passes=lambda one, other: order[other] == order[one] + 1 and heights)
