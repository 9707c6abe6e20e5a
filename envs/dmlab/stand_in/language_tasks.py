"""language_execute_random_task and language_answer_quantitative_question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sf_fixpo.envs.dmlab.stand_in.grids import Grid, Patch, centre
from sf_fixpo.envs.dmlab.stand_in.language import GOAL_REWARD, ROOM_MAPS, Named, Round, Rounds, build, wrong_reward
from sf_fixpo.envs.dmlab.stand_in.language_maps import QUESTION, TextMap
from sf_fixpo.envs.dmlab.stand_in.looks import COLOURS, SHAPE_NAMES, SIX_COLOURS
from sf_fixpo.envs.dmlab.stand_in.maze_levels import FLOORS, WALLS
from sf_fixpo.envs.dmlab.stand_in.mazes import Cell
from sf_fixpo.envs.dmlab.stand_in.motion import FRAMES_PER_SECOND
from sf_fixpo.envs.dmlab.stand_in.scene import Item, Look, Scene


@dataclass(frozen=True)
class Task:
    """What a round of execute_random_task asks for.

    Attributes:
        groups: objects that stand in one room together; goals come first of all.
        text: the instruction.
        goals: how many of the objects are goals.
        each: reward of one; the last pays `GOAL_REWARD` more.
    """

    groups: list[list[Named]]
    text: str
    goals: int = 1
    each: float = 0.0

    def wrong(self) -> float:
        """Reward of any other object."""
        others = sum(map(len, self.groups)) - self.goals
        return wrong_reward(GOAL_REWARD + self.each * self.goals, others)


class ExecuteRandomTask(Rounds):
    """Picks by a word or two, everything of a kind, or what stands near something."""

    frames = 120 * FRAMES_PER_SECOND

    def _draw(self) -> Round:
        # How often each task comes, of 19, and with how many rooms.
        makers: list[tuple[int, int, Callable[[int], Task]]] = [
            *((weight, rooms, self._pick_other) for weight, rooms in ((2, 2), (1, 4), (1, 6))),
            *((weight, rooms, self._pick_alike) for weight, rooms in ((2, 2), (1, 4), (1, 6))),
            *((weight, rooms, self._every_shape) for weight, rooms in ((2, 2), (1, 4))),
            *((weight, rooms, self._every_colour) for weight, rooms in ((2, 2), (1, 4))),
            *((weight, rooms, self._near_shapes) for weight, rooms in ((2, 2), (1, 4))),
            (1, 4, self._near_colour),
            (1, 4, self._near_colours),
        ]
        tickets = [(rooms, make) for weight, rooms, make in makers for _ in range(weight)]
        rooms, make = tickets[int(self.rng.integers(len(tickets)))]
        task = make(rooms)
        maps = ROOM_MAPS[rooms // 2 - 1]
        return self._place(task, maps[int(self.rng.integers(len(maps)))])

    def _place(self, task: Task, text: TextMap) -> Round:
        """Puts the objects of a task into a map: groups of two into rooms of their own, single ones anywhere."""
        by_room: dict[int | None, list[Cell]] = {}
        for cell in self.shuffled(text.cells("O")):
            by_room.setdefault(text.room(cell), []).append(cell)
        rooms = self.shuffled(list(by_room))
        anywhere = self.shuffled(text.cells("O"))
        items = []
        for group in task.groups:
            cells = by_room[rooms.pop()] if len(group) > 1 else [anywhere.pop()]
            items += [Item(named.look(), *centre(cell)) for named, cell in zip(group, cells, strict=False)]
        x, y = centre(self.shuffled(text.cells("P"))[0])
        grid = build(text, self.pick(WALLS), self.pick(FLOORS))
        scene = Scene((), (), (x, y, int(self.rng.integers(360))), items=tuple(items), grid=grid)
        return Round(scene, task.text, frozenset(range(task.goals)), task.each, task.wrong())

    def _goal(self) -> Named:
        return Named(self.pick(SHAPE_NAMES), self.pick(SIX_COLOURS))

    def _pick_other(self, rooms: int) -> Task:
        """Each of the others differs in colour and in shape."""
        goal = self._goal()
        others = [
            Named(self.pick(SHAPE_NAMES, goal.shape), self.pick(SIX_COLOURS, goal.colour))
            for _ in range({2: 2, 4: 4, 6: 8}[rooms])
        ]
        text = (goal.colour, goal.shape, f"{goal.colour} {goal.shape}")[int(self.rng.integers(3))]
        return Task([[named] for named in (goal, *others)], text)

    def _pick_alike(self, rooms: int) -> Task:
        """Half of the others have the colour, half the shape."""
        goal, half = self._goal(), {2: 1, 4: 3, 6: 5}[rooms]
        others = [Named(self.pick(SHAPE_NAMES, goal.shape), goal.colour) for _ in range(half)]
        others += [Named(goal.shape, self.pick(SIX_COLOURS, goal.colour)) for _ in range(half)]
        return Task([[named] for named in (goal, *others)], f"{goal.colour} {goal.shape}")

    def _numbers(self, rooms: int) -> tuple[int, int]:
        """How many goals and how many others there are of an "Every" task."""
        if rooms == 2:
            return 2, 2
        total = int(self.rng.integers(4, 9))
        goals = int(self.rng.integers(2, total - 1))
        return goals, total - goals

    def _every_shape(self, rooms: int) -> Task:
        shape, (goals, others) = self.pick(SHAPE_NAMES), self._numbers(rooms)
        named = [Named(shape, self.pick(SIX_COLOURS)) for _ in range(goals)]
        named += [Named(self.pick(SHAPE_NAMES, shape), self.pick(SIX_COLOURS)) for _ in range(others)]
        return Task([[each] for each in named], f"Every {shape}", goals, 1.0)

    def _every_colour(self, rooms: int) -> Task:
        colour, (goals, others) = self.pick(SIX_COLOURS), self._numbers(rooms)
        named = [Named(self.pick(SHAPE_NAMES), colour) for _ in range(goals)]
        named += [Named(self.pick(SHAPE_NAMES), self.pick(SIX_COLOURS, colour)) for _ in range(others)]
        return Task([[each] for each in named], f"Every {colour} object", goals, 1.0)

    def _near_shapes(self, rooms: int) -> Task:
        goal = self.pick(SHAPE_NAMES)
        anchor = self.pick(SHAPE_NAMES, goal)

        def shape(*without: str) -> Named:
            return Named(self.pick(SHAPE_NAMES, *without), self.pick(SIX_COLOURS))

        def of(name: str) -> Named:
            return Named(name, self.pick(SIX_COLOURS))

        groups = [[of(goal), of(anchor)], [of(goal), shape(goal, anchor)]]
        if rooms == 4:
            groups += [[of(anchor), shape(goal, anchor)], [shape(goal, anchor), shape(goal, anchor)]]
        return Task(groups, f"{goal} near {anchor}")

    def _near_colour(self, rooms: int) -> Task:
        del rooms
        goal, anchor = self.pick(SHAPE_NAMES), self.pick(SIX_COLOURS)

        def like() -> Named:
            return Named(goal, self.pick(SIX_COLOURS, anchor))

        def beside() -> Named:
            return Named(self.pick(SHAPE_NAMES, goal), anchor)

        def neither() -> Named:
            return Named(self.pick(SHAPE_NAMES, goal), self.pick(SIX_COLOURS, anchor))

        groups = [[like(), beside()], [like(), neither()], [beside(), neither()], [neither(), neither()]]
        return Task(groups, f"{goal} near {anchor} object")

    def _near_colours(self, rooms: int) -> Task:
        del rooms
        shape, goal = self.pick(SHAPE_NAMES), self.pick(SIX_COLOURS)
        anchor = self.pick(SIX_COLOURS, goal)

        def neither() -> Named:
            return Named(shape, self.pick(SIX_COLOURS, goal, anchor))

        like, beside = Named(shape, goal), Named(shape, anchor)
        groups = [[like, beside], [like, neither()], [beside, neither()], [neither(), neither()]]
        return Task(groups, f"{goal} object near {anchor} object")


@dataclass(frozen=True)
class Question:
    """A question about four objects.

    Attributes:
        text: of it.
        objects: four.
        yes: whether that is the answer.
    """

    text: str
    objects: list[Named]
    yes: bool


class AnswerQuantitativeQuestion(Rounds):
    """The white ball for yes, the black one for no."""

    frames = 60 * FRAMES_PER_SECOND

    def _draw(self) -> Round:
        self.question = self._ask()
        places = {mark: QUESTION.cells(mark) for mark in "YNQP"}
        answers = (("white", places["Y"][0]), ("black", places["N"][0]))
        balls = tuple(Item(Look("ball", COLOURS[colour]), *centre(cell)) for colour, cell in answers)
        props = tuple(
            (named.look(), *centre(cell), 0.0)
            for named, cell in zip(self.question.objects, self.shuffled(places["Q"]), strict=True)
        )
        x, y = centre(self.shuffled(places["P"])[0])
        start = (x, y, int(self.rng.integers(-10, 11)))
        scene = Scene((), (), start, items=balls, props=props, grid=_QUESTION_GRID)
        return Round(scene, self.question.text, frozenset({0 if self.question.yes else 1}), 0.0, -GOAL_REWARD)

    def _ask(self) -> Question:
        yes = bool(self.rng.random() < 0.5)
        shape, colour = self.pick(SHAPE_NAMES), self.pick(SIX_COLOURS)
        kind = int(self.rng.integers(4))
        if kind == 0:
            count = 4 if yes else int(self.rng.integers(1, 4))
            objects = self._some(shape, colour, count) + self._some(shape, "", 4 - count, colour)
            return Question(f"Are all {shape} objects {colour}?", self.shuffled(objects), yes)
        if kind == 3:
            return self._most(shape, colour, yes)
        count = int(self.rng.integers(1, 5)) if yes else 0
        if kind == 1:
            text = f"Is any {shape} {colour}?"
            objects = self._some(shape, colour, count)
            while len(objects) < 4:
                other = Named(self.pick(SHAPE_NAMES), self.pick(SIX_COLOURS))
                # Half of them share a word with the question, so that both words count.
                other = (other, other, Named(shape, other.colour), Named(other.shape, colour))[int(self.rng.integers(4))]
                if other != Named(shape, colour):
                    objects.append(other)
        else:
            text = f"Is anything {colour}?"
            objects = [Named(self.pick(SHAPE_NAMES), colour) for _ in range(count)]
            objects += [Named(self.pick(SHAPE_NAMES), self.pick(SIX_COLOURS, colour)) for _ in range(4 - count)]
        return Question(text, self.shuffled(objects), yes)

    def _most(self, shape: str, colour: str, yes: bool) -> Question:
        """More of a shape in a colour than in all others, or not."""
        counts = [(a, b) for a in range(5) for b in range(5) if 1 <= a + b <= 4 and (a > b) == yes]
        a, b = counts[int(self.rng.integers(len(counts)))]
        objects = self._some(shape, colour, a) + self._some(shape, "", b, colour)
        objects += [Named(self.pick(SHAPE_NAMES, shape), self.pick(SIX_COLOURS)) for _ in range(4 - a - b)]
        return Question(f"Are most {shape} objects {colour}?", self.shuffled(objects), yes)

    def _some(self, shape: str, colour: str, count: int, *without: str) -> list[Named]:
        """Objects of a shape, in a colour or in any but some."""
        return [Named(shape, colour or self.pick(SIX_COLOURS, *without)) for _ in range(count)]


def _question_grid() -> Grid:
    """Orange, with a green cell under yes, a red one under no, and black under the objects in question."""
    cells = dict(build(QUESTION, WALLS[0], "FLOORORA").cells)
    for mark, floor in (("Y", "LANGGRE"), ("N", "LANGRED"), ("Q", "FLOORDRK")):
        for cell in QUESTION.cells(mark):
            cells[cell] = Patch(floor, WALLS[0])
    return Grid(cells, 100)


_QUESTION_GRID = _question_grid()
