"""Finds questions for which a run keeps clear of every threshold; the finds are written to questions.py by hand."""

import itertools

from . import cases, corpus, runs
from . import model as models

FORMS = ["What colour is the {} {}?", "Is there a {} {} in the image?", "How many {} things are near the {}?",
         "Describe the {} {} in one short sentence.", "Where is the {} {}, and what is behind it?"]
TWO = ["<image>\nThis is the first one. <image>\nHas the {} {} changed?", "Compare <image>\nwith <image>\nand find the {} {}."]
RAW = ["<image><image> {} </s> {}", "<image> {}<image>{} ASSISTANT:"]


def candidates(item: dict):
    forms = RAW if item["style"] == "raw" else TWO if len(item["images"]) == 2 else FORMS
    pairs = itertools.product(corpus.THINGS, corpus.COLOURS, forms)
    for thing, colour, form in pairs:
        yield form.format(colour, thing)


def search(case_name: str, only: str = "", limit: int = 600) -> None:
    """Prints the first question that works for each run."""
    case = cases.build(case_name)
    model = models.build(case)
    half = None if case["dtype"] == "float32" else models.build(case, case["dtype"])
    sinks = set(cases.text_sinks(cases.SHAPES[case_name]))
    for item in runs.plan(case_name):
        if only and item["name"] != only:
            continue
        style, mode = runs.defaults(case, item)
        for tried, question in enumerate(itertools.islice(candidates(item), limit)):
            text = runs.prompt_text(style, question, len(item["images"]))
            prompt = models.prepare(model, case, text, item["images"], mode)
            state = models.new_state(case, prompt, item["var"])
            ok = True

            def stop(state, row, tokens) -> bool:
                nonlocal ok
                ok = runs.good(state, row[None], item, False)
                return not ok

            tokens, logits = models.generate(model, prompt, state, item["tokens"], stop)
            ok = ok and runs.good(state, logits, item, True) and len(set(tokens)) >= item["tokens"] // 4
            wants_sinks = item["var"] is not None and item["images"] and item["tokens"] > 32
            ok = ok and not (wants_sinks and sinks.isdisjoint(tokens[:-8]))
            if ok and half is not None:  # nothing may turn on a rounding of the half type either
                found = runs.record_half(model, half, case, {**item, "question": question})[0]["half"]
                ok = found["selection_flips"] == 0 and found["common_prefix"] == item["tokens"]
            if ok:
                print(f'    "{case_name}/{item["name"]}": {question!r},  # {tried} {state.margins.dictionary()["selected_share"]:.2f}'
                      f' {len(set(tokens))}', flush=True)
                break
        else:
            print(f"# {case_name}/{item['name']}: nothing", flush=True)
