"""Word problems in GSM8K's schema: six plots, told with two to eight sums in whole numbers.

The answer works them out one sum a line, with GSM8K's marks: `12 + 5 = <<12+5=17>>17`. What stands between the marks is
the problem's plan; it can be checked step by step.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from workloads.generators.word_story import Story

_MARKS = re.compile(r"<<[^<>]*>>")
WARES = ("notebook", "cup", "scarf", "lamp", "kite", "broom", "basket", "poster", "plant", "bell", "ladle", "puzzle")
JOBS = ("paints fences", "sorts letters", "waters gardens", "repairs bicycles", "bakes bread", "guides visitors")
VEHICLES = ("a bus", "a tractor", "a motorboat", "a minibus", "a train", "a van")
CROWDS = (
    ("pupils", "of a school", "ride a bicycle"),
    ("guests", "of a hotel", "ordered tea"),
    ("seats", "of a theatre", "are taken"),
    ("trees", "of an orchard", "bear plums"),
    ("books", "of a library", "are on loan"),
    ("houses", "of a village", "have a red door"),
)


def word_problem(rng: random.Random) -> dict[str, str]:
    """A record of GSM8K's schema: `question`, and `answer` with the sums and the line `#### number`."""
    story = Story(rng)
    asked, result = rng.choice(PLOTS)(story)
    return {
        "question": " ".join([*story.told, asked]),
        "answer": "\n".join([*story.sums, f"#### {result}"]),
    }


def without_marks(answer: str) -> str:
    """An answer as a person writes it, without the marks around the sums."""
    return _MARKS.sub("", answer)


def _stock(story: Story) -> tuple[str, int]:
    """Something is kept, and comes and goes."""
    count, things = story.rng.randint(12, 60), story.things
    story.tell(f"{story.name} keeps {count} {things} {story.place}.", f"There are {count} {things} {story.place}.")
    for event in story.rng.sample(EVENTS, story.rng.randint(2, 4)):
        count = event(story, count)
    shares = story.share_out(count)
    if shares > 1 and story.rng.random() < 0.4:
        story.tell(f"All {things} are then packed into {shares} equal bags.")
        asked = f"How many {things} are in each bag?"
        return asked, story.work(f"Each bag holds {{}} {things}.", count, "/", shares)
    if story.rng.random() < 0.5:
        price = story.rng.randint(2, 9)
        story.tell(f"In the end {story.name} sells all of them at ${price} each.")
        asked = f"How many dollars does {story.name} get for the {things}?"
        return asked, story.work("They bring in {} dollars.", count, "*", price)
    return f"How many {things} are there in the end?", count


def _gain(story: Story, count: int) -> int:
    more = story.rng.randint(3, 40)
    story.tell(f"{story.friend} brings {more} more.", f"On the next day {more} new {story.things} arrive.")
    return story.work(f"With the new ones there are {{}} {story.things}.", count, "+", more)


def _loss(story: Story, count: int) -> int:
    fewer = story.rng.randint(2, count - 2)
    story.tell(f"{fewer} of them get lost.", f"{story.name} gives {fewer} of them to {story.other}.")
    return story.work(f"That leaves {{}} {story.things}.", count, "-", fewer)


def _boxes(story: Story, count: int) -> int:
    boxes, each = story.rng.randint(2, 9), story.rng.randint(3, 15)
    story.tell(f"{story.name} buys {boxes} boxes with {each} {story.things} in each of them.")
    bought = story.work(f"The boxes hold {{}} {story.things}.", boxes, "*", each)
    return story.work(f"Together with the others that makes {{}} {story.things}.", count, "+", bought)


def _double(story: Story, count: int) -> int:
    story.tell(f"Over the following month the number of {story.things} doubles.")
    return story.work(f"Doubled, there are {{}} {story.things}.", count, "*", 2)


EVENTS: tuple[Callable[[Story, int], int], ...] = (_gain, _loss, _boxes, _double)


def _shopping(story: Story) -> tuple[str, int]:
    """Several of each ware, a coupon at times, and the change from a note."""
    wares: Sequence[str] = story.rng.sample(WARES, story.rng.randint(2, 3))
    counts = [story.rng.randint(2, 6) for _ in wares]
    prices = [story.rng.randint(2, 15) for _ in wares]
    listed = [f"{n} {ware}s at ${price} each" for n, ware, price in zip(counts, wares, prices, strict=True)]
    story.tell(f"{story.name} buys {', '.join(listed[:-1])} and {listed[-1]}.")
    total = 0
    for place, (n, ware, price) in enumerate(zip(counts, wares, prices, strict=True)):
        cost = story.work(f"The {ware}s cost {{}} dollars.", n, "*", price)
        total = story.work("So far that is {} dollars.", total, "+", cost) if place else cost
    if story.rng.random() < 0.5:
        off = story.rng.randint(1, 4)
        story.tell(f"A coupon takes ${off} off the bill.")
        total = story.work("With the coupon it is {} dollars.", total, "-", off)
    note = 50 * (total // 50 + 1)
    story.tell(f"{story.name} pays with ${note}.")
    return "How many dollars of change are due?", story.work("The change is {} dollars.", note, "-", total)


def _comparison(story: Story) -> tuple[str, int]:
    """Three people have so many times as much, or fewer, than each other."""
    first, times, less = story.rng.randint(6, 30), story.rng.randint(3, 6), story.rng.randint(2, 15)
    story.tell(
        f"{story.name} owns {first} {story.things}.", f"There are {first} {story.things} that {story.name} owns."
    )
    story.tell(f"{story.friend} owns {times} times as many.")
    story.tell(f"{story.other} owns {less} fewer than {story.friend}.")
    second = story.work(f"{story.friend} owns {{}} {story.things}.", first, "*", times)
    third = story.work(f"{story.other} owns {{}} {story.things}.", second, "-", less)
    if story.rng.random() < 0.4:
        asked = f"How many more {story.things} does {story.other} own than {story.name}?"
        return asked, story.work("The difference is {}.", third, "-", first)
    pair = story.work(f"{story.name} and {story.friend} together own {{}}.", first, "+", second)
    asked = f"How many {story.things} do the three of them own together?"
    return asked, story.work(f"All three own {{}} {story.things}.", pair, "+", third)


def _wages(story: Story) -> tuple[str, int]:
    """Work by the hour, money spent, and a wish that costs more."""
    hours, days, wage = story.rng.randint(3, 8), story.rng.randint(3, 6), story.rng.randint(11, 25)
    story.tell(f"{story.name} {story.rng.choice(JOBS)} {hours} hours a day on {days} days a week, for ${wage} an hour.")
    worked = story.work("A week has {} hours of work.", hours, "*", days)
    money = story.work("They pay {} dollars.", worked, "*", wage)
    spent = story.rng.randint(20, 90)
    story.tell(f"Food and fares cost ${spent} a week.")
    money = story.work("What is left of it is {} dollars.", money, "-", spent)
    if story.rng.random() < 0.5:
        return f"How many dollars does {story.name} keep each week?", money
    weeks = story.rng.randint(3, 9)
    asked = f"How many dollars does {story.name} save in {weeks} weeks?"
    return asked, story.work("That saves {} dollars.", money, "*", weeks)


def _journey(story: Story) -> tuple[str, int]:
    """Legs at a speed each, and what is left of the way."""
    driven = 0
    for place in range(story.rng.randint(2, 3)):
        speed, hours = 5 * story.rng.randint(4, 18), story.rng.randint(2, 6)
        with_what = f"{story.name} travels in {story.rng.choice(VEHICLES)}" if not place else "After a rest it goes on"
        story.tell(f"{with_what} for {hours} hours at {speed} kilometres an hour.")
        leg = story.work(f"Leg {place + 1} is {{}} kilometres long.", speed, "*", hours)
        driven = story.work("Up to there it is {} kilometres.", driven, "+", leg) if place else leg
    if story.rng.random() < 0.5:
        return "How many kilometres long is the way in all?", driven
    whole = driven + story.rng.randint(20, 300)
    story.tell(f"The whole way is {whole} kilometres long.")
    return "How many kilometres are still to go?", story.work("There are {} kilometres left.", whole, "-", driven)


def _share(story: Story) -> tuple[str, int]:
    """So many percent of a crowd, the others, and these in equal groups."""
    crowd, owner, do = story.rng.choice(CROWDS)
    total, percent = 20 * story.rng.randint(5, 60), 5 * story.rng.randint(2, 16)
    story.tell(f"Of the {total} {crowd} {owner}, {percent} percent {do}.")
    hundredfold = story.work("A hundred times the share is {}.", total, "*", percent)
    part = story.work(f"So {{}} {crowd} {do}.", hundredfold, "/", 100)
    rest = story.work(f"The others are {{}} {crowd}.", total, "-", part)
    groups = story.share_out(rest)
    if groups == 1 or story.rng.random() < 0.4:
        return f"For how many {crowd} is that not so?", rest
    story.tell(f"The others are divided into {groups} equal groups.")
    return f"How many {crowd} are in each group?", story.work("A group is {}.", rest, "/", groups)


PLOTS: tuple[Callable[[Story], tuple[str, int]], ...] = (_stock, _shopping, _comparison, _wages, _journey, _share)
