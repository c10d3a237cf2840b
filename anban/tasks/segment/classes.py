"""What the classes of a data set are called, how they are drawn, and which stored numbers stand for them.

| class set | classes | codings of its label files |
| --- | --- | --- |
| `cityscapes-19` | those that Cityscapes scores | `label-ids` 0..33, `train-ids` 0..18; the rest is ignored |
| `cityscapes-20` | the same, and `void` for what would be ignored | as above |
| `camvid-11` | as in SegNet's folders | `train-ids` 0..10, 11 ignored |
| `voc-21` | PASCAL VOC with its background | `train-ids` 0..20, 255 ignored |
| `ade20k-150` | the scene parsing benchmark | `label-ids` 1..150, 0 ignored; `train-ids` 0..149, 255 ignored |
| `coco-stuff-171` | 80 things and 91 stuffs | `label-ids` 0..181 with gaps, `train-ids` 0..170; 255 ignored |
| `demo-19` | those of the generated scenes | as `cityscapes-19` |
| a number K | `class 0` ... | `train-ids` 0..K-1, nothing ignored unless declared |

`label-ids` are the numbers a data set is distributed with, `train-ids` the numbers of the classes themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from anban.errors import InputError
from anban.recipe.schema import unknown

Colour = tuple[int, int, int]

IGNORE = 255
"""Number of the pixels that neither train nor score a network."""

UNKNOWN = 254
"""Stands in `Coding.table` for stored values that mean nothing."""


@dataclass(frozen=True)
class Coding:
    """How the values stored in label files say a class.

    Attributes:
        name: "label-ids" or "train-ids".
        numbers: stored value -> number of its class.
        ignored: stored values of pixels to be ignored.
    """

    name: str
    numbers: Mapping[int, int]
    ignored: frozenset[int]

    @property
    def values(self) -> set[int]:
        """Every stored value that means something."""
        return set(self.numbers) | self.ignored

    @property
    def table(self) -> NDArray[np.uint8]:
        """(256,) stored value -> number of its class, IGNORE or UNKNOWN."""
        table = np.full(256, UNKNOWN, np.uint8)
        for value, number in self.numbers.items():
            table[value] = number
        table[list(self.ignored)] = IGNORE
        return table

    def ignoring(self, values: Iterable[int]) -> Coding:
        """The same, with further stored values ignored, be they numbers of classes or not."""
        more = frozenset(values)
        kept = {value: number for value, number in self.numbers.items() if value not in more}
        return replace(self, numbers=kept, ignored=self.ignored | more)


@dataclass(frozen=True)
class ClassSet:
    """The classes 0..K-1 of a task.

    Attributes:
        name: as a recipe names it.
        classes: their names, by number.
        palette: their colours, by number.
        codings: how label files may say them; the first is how the data set is distributed.
        void: number of the class that stands for pixels without one; None where those are ignored.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    codings: tuple[Coding, ...]
    void: int | None = None

    def __len__(self) -> int:
        return len(self.classes)


@cache
def class_set(name: str | int) -> ClassSet:
    """The class set of that name, or one of `name` numbered classes.

    Raises:
        InputError: no such set, or a number outside 2..254.
    """
    if isinstance(name, int):
        if not 2 <= name <= UNKNOWN:
            raise InputError(f"{name} classes", where="data.classes", expected=f"2 to {UNKNOWN}")
        names = tuple(f"class {number}" for number in range(name))
        return ClassSet(str(name), names, _bit_palette(1, name + 1), (_train_ids(name, ()),))
    if name not in CLASS_SETS:
        raise unknown("class set", name, CLASS_SETS, "data.classes")
    return CLASS_SETS[name]()


def _train_ids(count: int, ignored: Iterable[int] = (IGNORE,)) -> Coding:
    return Coding("train-ids", {number: number for number in range(count)}, frozenset(ignored))


def _bit_palette(first: int, end: int) -> tuple[Colour, ...]:
    """Colours `first`..`end` - 1 of the map that PASCAL VOC's label files carry; the 256 of them differ.

    The bits of the index are dealt out to red, green and blue in turn, the lowest to each colour's highest bit.
    """

    def channel(index: int, offset: int) -> int:
        return sum((index >> (3 * place + offset) & 1) << (7 - place) for place in range(3))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(first, end))


def _colours(text: str) -> tuple[Colour, ...]:
    """Colours as six hexadecimal digits each."""
    values = [bytes.fromhex(word) for word in text.split()]
    return tuple((red, green, blue) for red, green, blue in values)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


# Cityscapes ------------------------------------------------------------------------------------------------------

LABEL_IDS = {name: number for number, name in enumerate(_names(
    "unlabeled, ego vehicle, rectification border, out of roi, static, dynamic, ground, road, sidewalk, parking, "
    "rail track, building, wall, fence, guard rail, bridge, tunnel, pole, polegroup, traffic light, traffic sign, "
    "vegetation, terrain, sky, person, rider, car, truck, bus, caravan, trailer, train, motorcycle, bicycle"
))}  # fmt: skip
"""Name of everything that Cityscapes annotates -> its number in `*_labelIds.png`."""

_SCORED = _names(
    "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, "
    "rider, car, truck, bus, train, motorcycle, bicycle"
)
_CITYSCAPES = _colours(
    "804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000 00008e 000046 003c64 "
    "005064 0000e6 770b20"
)


def _cityscapes() -> ClassSet:
    numbers = {LABEL_IDS[name]: number for number, name in enumerate(_SCORED)}
    label_ids = Coding("label-ids", numbers, frozenset(LABEL_IDS.values()) - set(numbers))
    return ClassSet("cityscapes-19", _SCORED, _CITYSCAPES, (label_ids, _train_ids(19)))


def _cityscapes_with_void() -> ClassSet:
    """What is ignored elsewhere is the twentieth class here."""
    base = _cityscapes()
    codings = tuple(
        replace(c, numbers={**c.numbers, **dict.fromkeys(c.ignored, 19)}, ignored=frozenset())
        for c in base.codings
    )
    return ClassSet("cityscapes-20", (*base.classes, "void"), (*base.palette, (0, 0, 0)), codings, void=19)


def _demo() -> ClassSet:
    return replace(_cityscapes(), name="demo-19")


# Others ----------------------------------------------------------------------------------------------------------


def _camvid() -> ClassSet:
    """The eleven classes of SegNet's copy of CamVid; 255 is accepted as another way to write 11."""
    names = _names(
        "sky, building, pole, road, pavement, tree, sign symbol, fence, car, pedestrian, bicyclist"
    )
    palette = _colours("808080 800000 c0c080 804080 3c28de 808000 c08080 404080 400080 404000 0080c0")
    return ClassSet("camvid-11", names, palette, (_train_ids(11, (11, IGNORE)),))


def _voc() -> ClassSet:
    names = _names(
        "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, dining table, dog, horse, "
        "motorbike, person, potted plant, sheep, sofa, train, tv monitor"
    )
    return ClassSet("voc-21", names, _bit_palette(0, 21), (_train_ids(21),))


def _ade20k() -> ClassSet:
    names = _names(
        "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, "
        "person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, "
        "house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, "
        "railing, cushion, base, box, column, signboard, chest of drawers, counter, sand, sink, "
        "skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow, "
        "screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, "
        "bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade "
        "machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, "
        "television receiver, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman, "
        "bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, "
        "swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, "
        "step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, "
        "sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, "
        "monitor, bulletin board, shower, radiator, glass, clock, flag"
    )
    palette = _colours(
        "787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 "
        "96053d 787846 08ff33 ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff "
        "ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff "
        "e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff "
        "8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff "
        "0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 "
        "0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 "
        "ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff "
        "00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff "
        "ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3 "
        "ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff "
        "ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff "
        "b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff"
    )
    label_ids = Coding("label-ids", {number + 1: number for number in range(150)}, frozenset({0}))
    return ClassSet("ade20k-150", names, palette, (label_ids, _train_ids(150)))


def _coco_stuff() -> ClassSet:
    """In the numbers of the stuff-and-things maps, where eleven things were never annotated; colours generated."""
    names = _names(
        "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, "
        "stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, "
        "giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, "
        "baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, "
        "fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, "
        "donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, "
        "keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, "
        "teddy bear, hair drier, toothbrush, banner, blanket, branch, bridge, building-other, bush, "
        "cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, "
        "cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other, floor-stone, "
        "floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel, "
        "ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, "
        "net, paper, pavement, pillow, plant-other, plastic, platform, playingfield, railing, railroad, "
        "river, road, rock, roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, "
        "stairs, stone, straw, structural-other, table, tent, textile-other, towel, tree, vegetable, "
        "wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other, "
        "waterdrops, window-blind, window-other, wood"
    )
    gaps = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
    stored = [value for value in range(182) if value not in gaps]
    label_ids = Coding(
        "label-ids", {value: number for number, value in enumerate(stored)}, frozenset({IGNORE})
    )
    return ClassSet("coco-stuff-171", names, _bit_palette(1, 172), (label_ids, _train_ids(171)))


CLASS_SETS = {
    "cityscapes-19": _cityscapes,
    "cityscapes-20": _cityscapes_with_void,
    "camvid-11": _camvid,
    "voc-21": _voc,
    "ade20k-150": _ade20k,
    "coco-stuff-171": _coco_stuff,
    "demo-19": _demo,
}
