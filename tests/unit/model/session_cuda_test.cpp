// Sessions on a GPU against the goldens: decode steps captured and not, alone and in a batch.

#include <ATen/ops/equal.h>

#include <memory>
#include <vector>

#include "libvar/batch_session.h"
#include "libvar/session.h"
#include "unit/model/family_run.h"
#include "unit/model/golden_run.h"

#include "unit/ops/cuda_support.h"  // last, with catch.h: c10 has a CHECK of its own

using namespace libvar;
using namespace libvar::testing;
using nlohmann::json;

TEST_CASE("sessions on a GPU answer as the goldens, captured or not", "[.][cuda]") {
  if (!libvar::test::have_gpu()) return;
  const std::string name = GENERATE("vila1_inside", "qwen_flat", "internvl_small");
  CAPTURE(name);
  const json& golden = family_case(name);
  const std::shared_ptr<const Model> model = load_family_case(golden, "fp32", "cuda");
  std::vector<Request> requests;
  std::vector<std::vector<std::int64_t>> expected;
  for (const json& run : golden.at("runs")) {
    Request request = family_request(run);
    request.return_logits = true;
    requests.push_back(request);
    expected.push_back(run.at("tokens").get<std::vector<std::int64_t>>());
    SessionOptions direct;
    direct.cuda_graph = false;
    Session captured_session(model), direct_session(model, direct);
    const Answer captured = captured_session.ask(request);
    CHECK(captured.tokens == expected.back());
    CHECK(captured_session.ask(request).tokens == expected.back());  // steps of the first answer
    const Answer plain = direct_session.ask(request);
    CHECK(plain.tokens == expected.back());
    CHECK(at::equal(plain.logits, captured.logits));
    CHECK(plain.var.selected_rows == captured.var.selected_rows);

    request.generation.temperature = 0.9;
    request.generation.top_p = 0.8;
    request.generation.seed = 5;
    Session on_cpu(load_family_case(golden, "fp32"));
    CHECK(captured_session.ask(request).tokens == on_cpu.ask(request).tokens);
  }
  // Several at a time, each twice, so that eight are decoded together.
  const std::vector<Request> again = requests;
  requests.insert(requests.end(), again.begin(), again.end());
  for (const bool graphs : {true, false}) {
    for (const std::int64_t batch : {3, 8}) {
      BatchOptions options;
      options.batch = batch;
      options.cuda_graph = graphs;
      BatchSession session(model, options);
      session.ask(requests, [&](std::size_t index, const Answer& answer) {
        CHECK(answer.tokens == expected[index % expected.size()]);
        return true;
      });
    }
  }
}
