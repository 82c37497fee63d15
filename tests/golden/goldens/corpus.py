"""The text that the golden tokenizer is trained on: our own sentences, and templates over small word lists."""

SENTENCES = """
A chat between a curious user and an artificial intelligence assistant.
The assistant gives helpful, detailed, and polite answers to the user's questions.
USER: What is in the picture? ASSISTANT: There is a small boat on the water.
Describe the image in one short sentence.
Answer the question using a single word or phrase.
How many people are there, and what are they doing?
The cat sleeps on a blue cushion near the window.
Two children run along the beach while the sun goes down.
On the table stand a cup of coffee, a spoon and a piece of bread.
The man in the red jacket is reading a newspaper at the station.
Behind the house there is a garden with apple trees.
A rocket rises above the clouds and leaves a white trail.
The galaxy looks like a spiral of dust and light.
It is raining, so the street shines and everyone carries an umbrella.
Is there a dog in the image? Yes, there is a brown dog under the bench.
Is there a horse in the image? No, there is no horse in the image.
Compare the first picture with the second one and tell me what has changed.
The old clock on the tower shows a quarter past nine.
She paints the wall green, then yellow, then green again.
Nothing in this photograph tells us where it was taken.
Please write a list of the objects that you can see.
The number of chairs is not equal to the number of guests.
A train crosses the bridge; below it the river is almost frozen.
Which animal is the largest, and which one is the smallest?
I don't know, but it could be a lamp or the moon.
He wasn't sure whether the text on the sign says stop or shop.
""".strip().splitlines()

COLOURS = "red blue green yellow black white brown orange purple grey".split()
THINGS = "cat dog bird car boat cup house tree chair table lamp clock train horse flower".split()
PLACES = ["on the left", "on the right", "in the middle", "at the top", "near the bottom", "in the background"]
COUNTS = "one two three four five six seven eight nine ten".split()


def lines() -> list[str]:
    """The corpus in a fixed order, about two thousand lines."""
    out = SENTENCES * 12
    for i, colour in enumerate(COLOURS):
        for j, thing in enumerate(THINGS):
            place = PLACES[(i + j) % len(PLACES)]
            count = COUNTS[(3 * i + j) % len(COUNTS)]
            out.append(f"What colour is the {thing} {place}? The {thing} is {colour}.")
            out.append(f"There are {count} {colour} {thing}s {place} of the image.")
            out.append(f"Where is the {colour} {thing}? It is {place}, next to {count} {COLOURS[j % 10]} things.")
            out.append(f"USER: Is the {thing} {colour}?  ASSISTANT: {'Yes' if (i + j) % 3 else 'No'}, it is.")
    for number in range(300):
        out.append(f"Picture {number * 37 % 1000} shows {number % 10} of {number % 17} items    (page {number}).")
    return out
