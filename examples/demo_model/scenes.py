"""Rendered scenes and the questions about them.

A scene holds one to three objects. Each stands in a quadrant of its own, so a place has one name and objects never overlap. Everything is drawn on a large
canvas and reduced with Pillow's own filters: the training images, the held-out images and the sample PNGs go through the same path.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

MODEL_SIZE = 48  # the side of the image that the vision tower sees, in pixels
PATCH = 8
GRID = MODEL_SIZE // PATCH
PICTURE_SIZE = 192  # the side of a rendered picture
SUPERSAMPLE = 2
QUADRANT = MODEL_SIZE / 2

COLORS = {
    "red": (214, 48, 49),
    "green": (39, 158, 80),
    "blue": (48, 98, 214),
    "yellow": (247, 205, 48),
    "purple": (136, 66, 180),
    "black": (38, 38, 44),
}
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("zero", "one", "two", "three")
KINDS = ("existence", "count", "color", "shape", "place", "content")
COLOR_NAMES = tuple(COLORS)

# A visual sink is a corner patch that shows nothing but background.
SINK_CANDIDATES = (0, GRID - 1, GRID * (GRID - 1), GRID * GRID - 1)


@dataclass
class SceneObject:
    shape: str
    color: str
    place: int  # index into PLACES
    x: float  # centre and radius in pixels of the model's image
    y: float
    radius: float


@dataclass
class Scene:
    objects: list[SceneObject]
    background: tuple[int, int, int]
    gradient: int
    rgb: list[tuple[int, int, int]]


@dataclass
class Question:
    kind: str
    text: str
    answer: str
    word: str  # the last word that says what to look for
    objects: list[int]  # the objects that fit, by index; training shows an attention head where to look


def random_scene(rng: random.Random, numbers: tuple[int, ...] = (1, 2, 3)) -> Scene:
    objects, rgb = [], []
    for place in rng.sample(range(4), rng.choice(numbers)):
        radius = rng.uniform(6.8, 9.6)
        slack = QUADRANT / 2 - 0.7 - radius
        column, row = place % 2, place // 2
        x = QUADRANT * (column + 0.5) + rng.uniform(-slack, slack)
        y = QUADRANT * (row + 0.5) + rng.uniform(-slack, slack)
        color = rng.choice(COLOR_NAMES)
        objects.append(SceneObject(rng.choice(SHAPES), color, place, x, y, radius))
        rgb.append(tuple(max(0, min(255, c + rng.randint(-8, 8))) for c in COLORS[color]))
    tone = rng.randint(222, 246)
    background = tuple(max(0, min(255, tone + rng.randint(-9, 9))) for _ in range(3))
    return Scene(objects, background, rng.randint(-8, 8), rgb)


def draw_shape(draw: ImageDraw.ImageDraw, item: SceneObject, scale: float, fill, grow: float = 0.0) -> None:
    x, y, r = item.x * scale, item.y * scale, (item.radius + grow) * scale
    if item.shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif item.shape == "square":
        half = 0.86 * r
        draw.rectangle((x - half, y - half, x + half, y + half), fill=fill)
    elif item.shape == "triangle":
        draw.polygon([(x, y - r), (x + r, y + 0.85 * r), (x - r, y + 0.85 * r)], fill=fill)
    else:
        arm = 0.34 * r
        draw.rectangle((x - r, y - arm, x + r, y + arm), fill=fill)
        draw.rectangle((x - arm, y - r, x + arm, y + r), fill=fill)


def render_picture(scene: Scene) -> Image.Image:
    """The picture as a file would hold it: PICTURE_SIZE square, antialiased by supersampling."""
    side = PICTURE_SIZE * SUPERSAMPLE
    ramp = np.linspace(-scene.gradient, scene.gradient, side)[:, None]
    rows = np.clip(np.array(scene.background)[None, :] + ramp, 0, 255).astype(np.uint8)
    canvas = Image.fromarray(np.ascontiguousarray(np.broadcast_to(rows[:, None, :], (side, side, 3))))
    draw = ImageDraw.Draw(canvas)
    for item, rgb in zip(scene.objects, scene.rgb):
        draw_shape(draw, item, side / MODEL_SIZE, rgb)
    return canvas.reduce(SUPERSAMPLE)


def model_pixels(picture: Image.Image) -> np.ndarray:
    """What CLIPImageProcessor makes of the picture before normalisation: Pillow bicubic, uint8."""
    return np.asarray(picture.resize((MODEL_SIZE, MODEL_SIZE), Image.Resampling.BICUBIC))


def patch_coverage(scene: Scene, grow: float = 0.0) -> np.ndarray:
    """Share of each patch that each object covers, [objects, patches]; grow widens the objects by that many pixels."""
    result = []
    scale = 2
    for item in scene.objects:
        mask = Image.new("L", (MODEL_SIZE * scale, MODEL_SIZE * scale))
        draw_shape(ImageDraw.Draw(mask), item, scale, 255, grow)
        cells = np.asarray(mask).reshape(GRID, PATCH * scale, GRID, PATCH * scale)
        result.append((cells > 0).mean(axis=(1, 3)).reshape(-1))
    return np.stack(result)


def patch_labels(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per patch: shape index (last = background), colour index (last = background), and whether it should become a sink."""
    coverage = patch_coverage(scene)
    shape = np.full(GRID * GRID, len(SHAPES))
    color = np.full(GRID * GRID, len(COLORS))
    for item, share in zip(scene.objects, coverage):
        shape[share > 0.12] = SHAPES.index(item.shape)
        color[share > 0.12] = COLOR_NAMES.index(item.color)
    # Widened by a pixel: bicubic reduction smears an edge that far.
    touched = patch_coverage(scene, grow=1.0).sum(axis=0) > 0
    sink = np.zeros(GRID * GRID, dtype=bool)
    for candidate in SINK_CANDIDATES:
        sink[candidate] = not touched[candidate]
    return shape, color, sink


def matching(scene: Scene, shape: str | None = None, color: str | None = None) -> list[int]:
    return [i for i, o in enumerate(scene.objects) if shape in (None, o.shape) and color in (None, o.color)]


def ask_existence(scene: Scene, rng: random.Random) -> Question | None:
    wanted = rng.random() < 0.5
    form = rng.choice(("pair", "pair", "shape", "color"))
    shapes = (None,) if form == "color" else SHAPES
    colors = (None,) if form == "shape" else COLOR_NAMES
    pool = [(c, s) for c in colors for s in shapes if wanted == bool(matching(scene, s, c))]
    if form == "pair" and not wanted and rng.random() < 0.7:  # a near miss: the colour or the shape is there, the pair is not
        pool = [(c, s) for c, s in pool if matching(scene, shape=s) or matching(scene, color=c)] or pool
    if not pool:
        return None
    color, shape = rng.choice(pool)
    thing = " ".join(word for word in (color, shape or "object") if word)
    return Question("existence", f"Is there a {thing} in the image?", "yes" if wanted else "no", shape or color, matching(scene, shape, color))


def plural(shape: str) -> str:
    return "crosses" if shape == "cross" else shape + "s"


def ask_count(scene: Scene, rng: random.Random) -> Question:
    form = rng.choice(("all", "shape", "color"))
    shape = color = None
    if form == "shape":
        shape = rng.choice(scene.objects).shape if rng.random() < 0.75 else rng.choice(SHAPES)
        word, text = plural(shape), plural(shape)
    elif form == "color":
        color = rng.choice(scene.objects).color if rng.random() < 0.75 else rng.choice(COLOR_NAMES)
        word, text = color, f"{color} objects"
    else:
        word = text = "objects"
    found = matching(scene, shape, color)
    return Question("count", f"How many {text} are in the image?", NUMBERS[len(found)], word, found)


def ask_color(scene: Scene, rng: random.Random) -> Question | None:
    pool = [i for i, o in enumerate(scene.objects) if len(matching(scene, shape=o.shape)) == 1]
    if not pool:
        return None
    index = rng.choice(pool)
    item = scene.objects[index]
    return Question("color", f"What color is the {item.shape}?", item.color, item.shape, [index])


def ask_shape(scene: Scene, rng: random.Random) -> Question | None:
    pool = [i for i, o in enumerate(scene.objects) if len(matching(scene, color=o.color)) == 1]
    if not pool:
        return None
    index = rng.choice(pool)
    item = scene.objects[index]
    return Question("shape", f"What shape is the {item.color} object?", item.shape, item.color, [index])


def ask_place(scene: Scene, rng: random.Random) -> Question | None:
    pool = [i for i, o in enumerate(scene.objects) if len(matching(scene, o.shape, o.color)) == 1]
    if not pool:
        return None
    index = rng.choice(pool)
    item = scene.objects[index]
    return Question("place", f"Where is the {item.color} {item.shape}?", PLACES[item.place], item.shape, [index])


def ask_content(scene: Scene, rng: random.Random) -> Question:
    place = rng.choice(scene.objects).place if rng.random() < 0.75 else rng.randrange(4)
    found = [i for i, o in enumerate(scene.objects) if o.place == place]
    thing = f"a {scene.objects[found[0]].color} {scene.objects[found[0]].shape}" if found else "nothing"
    return Question("content", f"What is in the {PLACES[place]}?", thing, PLACES[place].split()[1], found)


ASKERS = {
    "existence": ask_existence,
    "count": ask_count,
    "color": ask_color,
    "shape": ask_shape,
    "place": ask_place,
    "content": ask_content,
}


def random_question(scene: Scene, rng: random.Random, kind: str | None = None) -> Question:
    while True:
        question = ASKERS[kind or rng.choice(KINDS)](scene, rng)
        if question is not None:
            return question
        kind = None


def packed_questions(scene: Scene, rng: random.Random, number: int) -> list[Question]:
    """Questions for one training image: each kind in turn, so that no kind starves."""
    kinds = list(KINDS) * (number // len(KINDS)) + rng.sample(KINDS, number % len(KINDS))
    rng.shuffle(kinds)
    return [random_question(scene, rng, kind) for kind in kinds]
