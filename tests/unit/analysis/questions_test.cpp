#include "libvar/questions.h"

#include "catch.h"
#include "libvar/error.h"
#include "temporary_folder.h"

using namespace libvar;
using namespace libvar::testing;
using Catch::Matchers::Contains;

using Paths = std::vector<std::filesystem::path>;

TEST_CASE("a question file is read by its names and their aliases", "[questions]") {
  const TemporaryFolder folder;
  write_bytes(folder / "a.png", "x");
  write_bytes(folder / "q.jsonl",
              "{\"question_id\": 7, \"image\": \"a.png\", \"text\": \"Why?\", \"label\": \"so\", "
              "\"category\": 3}\r\n\n"
              "{\"qid\": \"b\", \"image\": \"a.png\", \"prompt\": \"How?\", \"answer\": \"\"}\n"
              "{\"qid\": \"b\", \"image\": [\"a.png\", \"c.png\"], \"question\": \"Both?\"}\n"
              "{\"qid\": \"d\", \"text\": \"None?\"}");
  write_bytes(folder / "c.png", "x");
  const std::vector<Question> found = read_questions(folder / "q.jsonl", folder.path());
  REQUIRE(found.size() == 4);
  CHECK(found[0].id == "7");
  CHECK(found[0].images == Paths{folder / "a.png"});
  CHECK(found[0].text == "Why?");
  CHECK(found[0].label == "so");
  CHECK(found[1].id == "\"b\"");
  CHECK(found[1].text == "How?");
  CHECK(found[1].label == "");
  CHECK(found[2].images == Paths{folder / "a.png", folder / "c.png"});
  CHECK_FALSE(found[2].label.has_value());
  CHECK(found[3].images.empty());
  for (const auto& [at, line] : {std::pair(0, 1), {1, 3}, {2, 4}, {3, 5}})
    CHECK(found[static_cast<std::size_t>(at)].line == line);
}

TEST_CASE("a question file that is not understood is refused by line", "[questions]") {
  const TemporaryFolder folder;
  write_bytes(folder / "a.png", "x");
  const auto error_of = [&](const std::string& text,
                            const QuestionNeeds& needs = {}) -> std::string {
    write_bytes(folder / "q.jsonl", text);
    try {
      read_questions(folder / "q.jsonl", folder.path(), needs);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no error";
  };
  const std::string good = R"({"question_id": 1, "image": "a.png", "text": "Why?", "label": "so"})"
                           "\n";
  CHECK_THAT(error_of(""), Contains("holds no questions"));
  CHECK_THAT(error_of(good + "[1]"), Contains("line 2: expected a JSON object, found [1]"));
  CHECK_THAT(error_of(good + good, {.unique_id = true}),
             Contains("line 2: question_id 1 stands twice"));
  CHECK(error_of(good + good) == "no error");
  const std::string bare = good + R"({"question_id": 2, "text": "Why?"})";
  CHECK(error_of(bare) == "no error");
  CHECK_THAT(error_of(bare, {.label = true}), Contains("q.jsonl, line 2: label is missing"));
  CHECK_THAT(error_of(bare, {.image = true}), Contains("q.jsonl, line 2: image is missing"));
  CHECK_THAT(error_of(R"({"image": "a.png", "text": "W", "label": "s"})"),
             Contains("line 1: question_id is missing"));
  CHECK_THAT(error_of(R"({"question_id": 1, "image": "a.png", "text": 3, "label": "s"})"),
             Contains("text: expected a text, found 3"));
  CHECK_THAT(error_of(R"({"question_id": 1, "image": "b.png", "text": "W", "label": "s"})"),
             Contains("line 1: image") && Contains("b.png isn't there"));
  CHECK_THAT(error_of(R"({"question_id": 1, "image": ["a.png", 2], "text": "W"})"),
             Contains("image: expected a text, found 2"));
  CHECK_THAT(error_of(R"({"question_id": 1, "text": "W", "label": 3})"),
             Contains("label: expected a text, found 3"));
  CHECK_THROWS_AS(read_questions(folder / "none", folder.path()), InputError);
}

TEST_CASE("scorers say what is right", "[questions]") {
  CHECK(is_right(Scorer::kExact, " two \n", "two"));
  CHECK_FALSE(is_right(Scorer::kExact, "Two", "two"));
  // POPE's published parser: all that is not a plain no is yes.
  for (const char* no : {"no", "No", "No, there isn't", "There is not", "it is no. Yes"})
    CHECK(is_right(Scorer::kYesNo, no, "no"));
  for (const char* yes : {"yes", "", "NO", "no\nBecause", "isn't", "Yes. no", "nobody"})
    CHECK(is_right(Scorer::kYesNo, yes, "Yes"));
  CHECK_THROWS_AS(is_right(Scorer::kYesNo, "no", "maybe"), InputError);
  CHECK(parse_scorer("yes_no") == Scorer::kYesNo);
  CHECK_THROWS_AS(parse_scorer("vqa"), ConfigError);
}
