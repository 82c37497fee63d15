#!/usr/bin/env python3
"""The page of `var sinks report` in headless Chromium: every control is used, pictures are compared.

Needs Debian's chromium, chromium-driver and python3-selenium; exits with 77 (skipped) where they are missing.
--update-screenshots writes the reference pictures anew: look at them before they are committed.
"""
import argparse
import base64
import csv
import pathlib
import re
import subprocess
import sys
import unittest

try:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.action_builder import ActionBuilder
    from selenium.webdriver.common.actions.pointer_input import PointerInput
    from selenium.webdriver.common import utils
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait
except ImportError:
    print("SKIPPED: python3-selenium is not installed", flush=True)
    sys.exit(77)

CHROMIUM, DRIVER = pathlib.Path("/usr/bin/chromium"), pathlib.Path("/usr/bin/chromedriver")
HERE = pathlib.Path(__file__).resolve().parent
DESKTOP, PHONE = (1200, 1600), (375, 1700)
SINKS = [0, 5, 30, 35]  # the corners of 6 x 6 tokens
COMPARE = """
const [found, expected, width, done] = arguments;
const load = (uri) => new Promise((resolve) => { const i = new Image(); i.onload = () => resolve(i); i.src = uri; });
const shrink = (image) => {
  const canvas = document.createElement('canvas');
  canvas.width = width; canvas.height = Math.round(width * image.height / image.width);
  const context = canvas.getContext('2d');
  context.imageSmoothingQuality = 'high';
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas;
};
(async () => {
  const small = shrink(await load(found));
  if (!expected) return done({uri: small.toDataURL('image/png')});
  const other = shrink(await load(expected));
  if (small.height !== other.height) return done({heights: [small.height, other.height]});
  const a = small.getContext('2d').getImageData(0, 0, small.width, small.height).data;
  const b = other.getContext('2d').getImageData(0, 0, other.width, other.height).data;
  let sum = 0, far = 0;
  for (let i = 0; i < a.length; ++i) {
    const difference = Math.abs(a[i] - b[i]);
    sum += difference;
    far += difference > 64 ? 1 : 0;
  }
  done({mean: sum / a.length, far: far / a.length});
})();
"""
arguments = None


def run_var(*flags):
    demo = arguments.source / "examples/demo_model"
    command = [str(arguments.var), "sinks", flags[0], str(demo / "demo.pt"), *flags[1:], "--device", "cpu", "--dtype", "fp32"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr}")


def numeric_service():
    """The driver without the name localhost, which a minimal system may not know."""
    class NumericService(Service):
        @property
        def service_url(self):
            return f"http://127.0.0.1:{self.port}"

        def is_connectable(self):
            return utils.is_connectable(self.port, "127.0.0.1")

    return NumericService(str(DRIVER))


def data_uri(png):
    return "data:image/png;base64," + base64.b64encode(png).decode()


class ReportPage(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.work = arguments.work
        cls.work.mkdir(parents=True, exist_ok=True)
        demo = arguments.source / "examples/demo_model"
        # Heads of every ratio may be changed: one of the answers differs from that without VAR.
        run_var("report", "--questions", str(demo / "questions.jsonl"), "--images", str(demo / "images"), "--limit", "3", "--rho",
                "0", "--min-visual-mass", "0", "--p", "1", "--out", str(cls.work / "three.html"))
        question, picture = "Is there a black object in the image?", str(demo / "images/scene_1.png")
        run_var("report", question, "--image", picture, "--max-new-tokens", "1", "--out", str(cls.work / "short.html"))
        run_var("report", question, "--image", picture, "--out", str(cls.work / "one.html"))
        run_var("show", question, "--image", picture, "--out", str(cls.work / "show"))
        with open(cls.work / "show/attention.csv", encoding="utf-8") as file:
            cls.attention = {(int(r["layer"]), int(r["row"]), int(r["position"])): (float(r["attention"]), float(r["redistributed"]))
                             for r in csv.DictReader(file)}
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
                     "--force-device-scale-factor=1", "--force-color-profile=srgb", "--remote-debugging-pipe", f"--user-data-dir={cls.work / 'profile'}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        cls.driver = webdriver.Chrome(service=numeric_service(), options=options)
        cls.driver.set_script_timeout(60)

    @classmethod
    def tearDownClass(cls):
        cls.driver.quit()

    # ---- helpers

    def open(self, name, size=DESKTOP, touch=False, dark=False):
        cdp = self.driver.execute_cdp_cmd
        cdp("Emulation.setDeviceMetricsOverride", {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": touch})
        cdp("Emulation.setTouchEmulationEnabled", {"enabled": touch})
        cdp("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})
        self.driver.get("about:blank")
        self.driver.get((self.work / name).as_uri())
        self.ready("1/0")

    def ready(self, state):
        WebDriverWait(self.driver, 60).until(lambda d: d.execute_script("return document.body.dataset.ready") == state,
                                             f"the page never shows layer/head {state}")

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return self.one(selector).text

    def pixels(self, run="on"):
        return self.driver.execute_script(f"return document.querySelector('[data-run={run}] canvas').toDataURL()")

    def pressed(self):
        return [button.text for button in self.all(".words button[aria-pressed=true]")]

    def word(self, text):
        return next(button for button in self.all("#prompt-words button") if button.text == text)

    def set_range(self, name, value):
        self.driver.execute_script("const e = document.getElementById(arguments[0]); e.value = arguments[1];"
                                   "e.dispatchEvent(new Event('input'));", name, value)

    def keys(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()

    def levels(self, run):
        """Level of the colour scale, 0 to 255, in the middle of each token's cell; the colours cover all."""
        return self.driver.execute_script("""
            const canvas = document.querySelector(`[data-run=${arguments[0]}] canvas`), context = canvas.getContext('2d');
            const scale = canvas.width / canvas.view.picture.width;
            return canvas.view.tokens.map((k) => {
              const [l, t, r, b] = canvas.view.picture.boxes[k].map((x) => x * scale);
              const [red, green, blue] = context.getImageData(Math.round((l + r) / 2), Math.round((t + b) / 2), 1, 1).data;
              let best = 0, least = Infinity;
              for (let i = 0; i < 256; ++i) {
                const d = (colours[3 * i] - red) ** 2 + (colours[3 * i + 1] - green) ** 2 + (colours[3 * i + 2] - blue) ** 2;
                if (d < least) { least = d; best = i; }
              }
              return least > 12 ? -1 : best;
            });""", run)

    # ---- tests

    def test_needs_nothing_but_itself(self):
        self.driver.get_log("browser")  # drops what other tests have caused
        self.open("three.html")
        self.assertEqual(self.driver.get_log("browser"), [])
        self.assertEqual(self.driver.execute_script(
            "return performance.getEntriesByType('resource').filter((e) => !e.name.startsWith('data:')).map((e) => e.name)"), [])
        page = (self.work / "three.html").read_text(encoding="utf-8")
        self.assertIsNone(re.search(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//|@import|url\(""", page))
        self.assertFalse(list(self.work.glob("*.jsonl")) + list(self.work.glob("*.partial*")))

    def test_colours_are_the_attention(self):
        """Against the tables of `sinks show`, in two layers, of an answer's and a question's word."""
        self.open("one.html")
        self.set_range("opacity", 100)
        for checkbox in ("grid", "outline"):
            self.one(f"#{checkbox}").click()
        row = int(re.search(r"position (\d+)", self.text("[data-run=on] .caption")).group(1))
        self.assertEqual(row, max(r for _, r, _ in self.attention))
        for layer, word in ((1, None), (2, "black")):
            self.set_range("layer", layer)
            self.ready(f"{layer}/0")
            if word:
                self.word(word).click()
                row = int(re.search(r"position (\d+)", self.text("[data-run=on] .caption")).group(1))
            expected = [self.attention[layer, row, 4 + k][1] for k in range(36)]
            most = float(self.text("#most").rstrip(" %")) / 100
            for key, scale, power in ((Keys.ARROW_UP, "square root", 2), (Keys.ARROW_DOWN, "linear", 1)):
                self.one("#root").send_keys(key)
                self.assertEqual(self.driver.execute_script("return document.getElementById('root').selectedOptions[0].text"), scale)
                found = [most * (level / 255) ** power for level in self.levels("on")]
                for a, b in zip(found, expected):
                    self.assertLess(abs(a - b), 0.02 * most, (layer, word, scale, found, expected))

    def test_words_by_mouse(self):
        self.open("one.html")
        self.assertEqual(self.pressed(), ["no", "no"])
        before = self.pixels()
        ActionChains(self.driver).move_to_element(self.word("black")).perform()
        self.assertEqual(self.pressed(), ["black"])
        self.assertIn("black", self.text("[data-run=off] .caption"))
        self.assertNotEqual(self.pixels(), before)
        ActionChains(self.driver).move_to_element(self.one("h1")).perform()
        self.assertEqual(self.pressed(), ["no", "no"])
        self.assertEqual(self.pixels(), before)
        self.word("object").click()
        ActionChains(self.driver).move_to_element(self.one("h1")).perform()
        self.assertEqual(self.pressed(), ["object"])
        self.assertEqual(self.text("#share-word"), "object")

    def test_words_and_tokens_by_keyboard(self):
        self.open("one.html")
        self.one("#prompt-words button").send_keys("")
        for _ in range(40):  # from the page's start to the answer's word, by Tab alone
            self.keys(Keys.TAB)
            if self.driver.execute_script("return document.activeElement.tagName") == "CANVAS":
                break
        self.assertEqual(self.driver.execute_script("return document.activeElement.getAttribute('aria-label')"),
                         "Picture with the attention of the chosen word, VAR off")
        self.keys(Keys.ARROW_RIGHT)
        self.assertIn("Token 0, position 4:", self.text("#token"))
        self.keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
        self.assertIn("Token 7, position 11:", self.text("#token"))
        self.keys(Keys.ARROW_LEFT, Keys.ARROW_UP)
        self.assertIn("a visual sink", self.text("#token"))
        self.keys(Keys.ARROW_UP)
        self.assertIn("Token 0,", self.text("#token"))  # nothing above it
        self.keys(Keys.ESCAPE)
        self.assertEqual(self.text("#token"), "No token chosen.")
        self.word("there").click()
        self.keys(Keys.ARROW_RIGHT)
        self.assertEqual(self.pressed(), ["a"])
        self.keys(Keys.END)
        self.assertEqual(self.pressed(), [":"])
        self.keys(Keys.HOME, Keys.ARROW_LEFT)
        self.assertEqual(self.driver.execute_script("return chosen.index"), 0)

    def test_sliders_by_keyboard(self):
        self.open("one.html")
        layer, head = self.one("#layer"), self.one("#head")
        before = self.pixels()
        layer.send_keys(Keys.ARROW_RIGHT)
        self.ready("2/0")
        self.assertIn("Layer 2", self.text("#layer-name"))
        self.assertEqual({span.text for span in self.all(".layer-number")}, {"2"})
        self.assertNotEqual(self.pixels(), before)
        layer.send_keys(Keys.END)
        self.ready("3/0")
        layer.send_keys(Keys.HOME)
        self.ready("0/0")
        layer.send_keys(Keys.ARROW_RIGHT)
        self.ready("1/0")
        self.assertEqual(self.pixels(), before)
        head.send_keys(Keys.ARROW_RIGHT)
        self.ready("1/1")
        self.assertEqual(self.text("#head-name"), "Head 0")
        self.assertEqual(self.text("#heads tr.chosen td"), "0")
        head.send_keys(Keys.END)
        self.ready("1/8")
        self.one("#opacity").send_keys(Keys.HOME)
        self.assertEqual(self.driver.execute_script("return document.getElementById('opacity').value"), "0")
        for checkbox in ("outline", "grid"):
            before = self.pixels()
            self.one(f"#{checkbox}").send_keys(Keys.SPACE)
            self.assertNotEqual(self.pixels(), before, checkbox)
        self.assertEqual(self.pixels("off"), self.pixels("on"))  # nothing but the picture is left

    def test_sinks_and_heads(self):
        self.open("one.html")
        rows = self.all("#sinks tbody tr")
        self.assertEqual([int(row.find_element(By.TAG_NAME, "button").text) for row in rows], SINKS)
        for row, token in zip(rows, SINKS):
            cells = [cell.text for cell in row.find_elements(By.TAG_NAME, "td")]
            self.assertEqual(int(cells[1]), 4 + token)
            self.assertGreater(float(cells[3]), 20)
            shown = self.attention[1, max(r for _, r, _ in self.attention), 4 + token][1]
            self.assertAlmostEqual(float(cells[5].rstrip(" %")) / 100, shown, delta=0.01 * shown + 1e-4)
        rows[2].find_element(By.TAG_NAME, "button").click()
        self.assertIn("Token 30,", self.text("#token"))
        self.assertIn("chosen", rows[2].get_attribute("class"))
        shares = [[float(cell.text.rstrip(" %")) for cell in row.find_elements(By.TAG_NAME, "td")[2:]]
                  for row in self.all("#shares tbody tr")]
        self.assertEqual(len(shares), 3)
        for row in shares:
            self.assertAlmostEqual(sum(row), 100, delta=0.2)
        self.assertGreater(shares[2][1], shares[1][1])  # VAR moves attention to other visual tokens

        def column(index, kind):
            return [kind(row.find_elements(By.TAG_NAME, "td")[index].text.rstrip(" %")) for row in self.all("#heads tbody tr")]
        self.assertEqual(column(0, int), list(range(8)))
        self.one("[data-sort=ratio]").click()
        ratios = column(1, float)
        self.assertEqual(ratios, sorted(ratios, reverse=True))
        self.assertGreater(ratios[0], 0.8)
        self.one("[data-sort=ratio]").click()
        self.assertEqual(column(1, float), sorted(ratios))
        self.assertEqual(self.one("#heads th[aria-sort]").get_attribute("aria-sort"), "ascending")
        wanted = self.all("#heads tbody button")[-1]
        number = int(wanted.text)
        wanted.click()
        self.ready(f"1/{number + 1}")
        self.assertEqual(self.driver.execute_script("return document.activeElement.textContent"), str(number))

    def test_tokens_by_mouse(self):
        self.open("one.html")
        canvas = self.one("[data-run=off] canvas")
        ActionChains(self.driver).move_to_element(canvas).perform()
        self.assertRegex(self.text("#token"), r"^Token (14|15|20|21), ")
        width = canvas.size["width"]
        ActionChains(self.driver).move_to_element_with_offset(canvas, width // 2 - 4, width // 2 - 4).perform()
        self.assertIn("Token 35, position 39", self.text("#token"))

    def test_several_questions_and_answers_that_differ(self):
        self.open("three.html")
        rows = [[cell.text for cell in row.find_elements(By.TAG_NAME, "td")] for row in self.all("#overview tbody tr")]
        self.assertEqual([row[0] for row in rows], ["scene_1.png"] * 3)
        self.assertEqual(rows[1][1:], ["How many circles are in the image?", "zero", "two", "differ"])
        self.all("#overview tbody button")[1].click()
        WebDriverWait(self.driver, 30).until(lambda d: self.text("#question") == "How many circles are in the image?")
        self.ready("1/0")
        self.assertEqual([button.text for button in self.all(".run .words button")], ["zero", "two"])
        self.assertEqual(len(self.all(".run .words button.differs")), 2)
        self.assertIn("chosen", self.all("#overview tbody tr")[1].get_attribute("class"))

    def test_an_answer_that_the_length_ended(self):
        self.open("short.html")
        self.assertEqual([button.is_enabled() for button in self.all(".run .words button")], [False, False])
        self.assertEqual(self.pressed(), [":"])  # the prompt's last token chose it
        self.assertIn("position 52", self.text("[data-run=on] .caption"))

    def test_phone(self):
        self.open("one.html", PHONE, touch=True)
        self.assertEqual(self.driver.execute_script("return document.documentElement.scrollWidth"), PHONE[0])
        small = self.driver.execute_script("""
            return [...document.querySelectorAll('.words button, .controls input, .controls select')]
              .filter((e) => e.getBoundingClientRect().height < 18).length""")
        self.assertEqual(small, 0)
        before = self.pixels()
        finger = ActionBuilder(self.driver, mouse=PointerInput("touch", "finger"))
        finger.pointer_action.move_to(self.word("black")).pointer_down().pointer_up()
        finger.perform()
        self.assertEqual(self.pressed(), ["black"])
        self.assertNotEqual(self.pixels(), before)
        finger = ActionBuilder(self.driver, mouse=PointerInput("touch", "finger"))
        finger.pointer_action.move_to(self.one("[data-run=on] canvas")).pointer_down().pointer_up()
        finger.perform()
        self.assertRegex(self.text("#token"), r"^Token (14|15|20|21), ")

    def test_text_can_be_read_in_light_and_dark(self):
        """WCAG's contrast of 4.5 or more, of all texts on the grounds that they stand on."""
        for dark in (False, True):
            self.open("three.html", dark=dark)
            worst = self.driver.execute_script("""
                const parse = (c) => c.match(/[\\d.]+/g).map(Number);
                const light = ([r, g, b]) => [r, g, b].map((v) => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; })
                  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
                const ground = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
                  if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
                let worst = [Infinity, ''];
                for (const e of document.querySelectorAll('h1, h2, h3, p, td, th, span, label, .words button:enabled')) {
                  if (!e.textContent.trim() || !e.offsetParent) continue;
                  const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))];
                  const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
                  if (contrast < worst[0]) worst = [contrast, e.outerHTML.slice(0, 80)];
                }
                return worst;""")
            self.assertGreater(worst[0], 4.5, worst)

    def test_screenshots(self):
        for name, page, size, dark, width in (("desktop", "three.html", DESKTOP, False, 300), ("phone", "one.html", PHONE, False, 190),
                                              ("dark", "one.html", DESKTOP, True, 300)):
            self.open(page, size, dark=dark)
            png = self.driver.get_screenshot_as_png()
            (self.work / f"{name}.png").write_bytes(png)
            reference = HERE / f"{name}.png"
            self.driver.get("about:blank")
            if arguments.update_screenshots:
                small = self.driver.execute_async_script(COMPARE, data_uri(png), None, width)["uri"]
                reference.write_bytes(base64.b64decode(small.split(",")[1]))
                continue
            result = self.driver.execute_async_script(COMPARE, data_uri(png), data_uri(reference.read_bytes()), width)
            print(f"{name}: {result}")
            self.assertIn("mean", result)
            self.assertLess(result["mean"], 3.0, f"{self.work / name}.png")
            self.assertLess(result["far"], 0.015, f"{self.work / name}.png")


def main():
    global arguments
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--var", type=pathlib.Path, required=True)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--update-screenshots", action="store_true")
    parser.add_argument("rest", nargs="*", help="unittest's own")
    arguments = parser.parse_args()
    if not CHROMIUM.exists() or not DRIVER.exists():
        print("SKIPPED: chromium or chromium-driver is not installed", flush=True)
        return 77
    arguments.work = arguments.work.resolve()
    unittest.main(argv=[sys.argv[0], *arguments.rest], verbosity=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
