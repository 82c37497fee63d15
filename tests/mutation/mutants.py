"""Faults that the SIMT tests must catch: each a file, its exact text, what stands there instead, and what that breaks."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mutant:
    file: str
    fault: str  # what is wrong with it
    old: str  # occurs exactly once in the file
    new: str
    test: str  # tests/simt/<test>*_test.cpp are built and run


def _of(file, test):
    return lambda fault, old, new: Mutant(f"kernels/{file}", fault, old, new, test)


_classes = _of("classes.h", "redistribute")
_device = _of("cuda/device.cuh", "norms")
_vectors = _of("cuda/vectors.cuh", "redistribute")
_redistribute = _of("cuda/redistribute.cuh", "redistribute")
_greedy = _of("cuda/greedy_tokens.cuh", "greedy_tokens")
_norms = _of("cuda/norms.cuh", "norms")
_rotary = _of("cuda/rotary.cuh", "rotary")
_silu_mul = _of("cuda/silu_mul.cuh", "silu_mul")
_skinny = _of("cuda/skinny_linear.cuh", "skinny_linear")
_ranges = _of("cuda/attention.cuh", "attention_kernels")
_fragments = _of("cuda/attention_fragments.cuh", "attention_kernels")
_rows = _of("cuda/attention_rows.cuh", "attention_kernels")
_group = _of("cuda/attention_group.cuh", "attention_kernels")
_decode = _of("cuda/attention_decode.cuh", "attention_kernels")
_combine = _of("cuda/attention_combine.cuh", "attention_kernels")

MUTANTS = [
    # --- the method: class of a key, weights of a row ---
    _classes("a score equal to tau is no sink", "sink_score >= tau", "sink_score > tau"),
    _classes("NaN is a sink", "sink_score >= tau", "!(sink_score < tau)"),
    _classes("visual and text keys change places", "(visual ? 0 : 2)", "(visual ? 2 : 0)"),
    _classes("a sink keeps p instead of giving it away", "result.weight[c] = 1.0f - rule.p;", "result.weight[c] = rule.p;"),
    _classes("targets get the budget alone, not what they had", "1.0f + omega / target_mass", "omega / target_mass"),
    _classes("the budget comes from the targets", "rule.p * mass_of(mass, rule.sources)",
             "rule.p * mass_of(mass, rule.targets)"),
    _classes("r is the sinks' share", ": visual_non_sink / visual;", ": visual_sink / visual;"),
    _classes("ratio_epsilon does not count the keys", "rule.ratio_epsilon * num_visual_keys", "rule.ratio_epsilon"),
    _classes("the least visual mass is not asked for", "!(visual >= rule.min_visual_mass) || ", ""),
    _classes("rule 4 holds for HeadRule::kAll too", "if (rule.head_rule == HeadRule::kRatio) {", "{"),
    # --- reductions ---
    _device("a warp's sum leaves out half of its lanes", "for (int offset = kWarpSize / 2; offset > 0; offset /= 2)\n"
            "    x += ", "for (int offset = kWarpSize / 4; offset > 0; offset /= 2)\n    x += "),
    _device("a warp's maximum is that of four lanes", "for (int offset = kWarpSize / 2; offset > 0; offset /= 2)\n"
            "    x = fmaxf", "for (int offset = kWarpSize / 16; offset > 0; offset /= 2)\n    x = fmaxf"),
    _redistribute("no barrier between writing and reading the warps' sums",
                  "if (lane % 8 == 0) sums[threadIdx.x / kWarpSize][lane / 8] = sum;\n    __syncthreads();",
                  "if (lane % 8 == 0) sums[threadIdx.x / kWarpSize][lane / 8] = sum;"),
    _redistribute("one buffer of sums for all rows", "turn ^= 1;", ""),
    _redistribute("the first exchange sends what it keeps", "__shfl_xor_sync(kFullWarp, upper ? x[0] : x[2], 16)",
                  "__shfl_xor_sync(kFullWarp, upper ? x[2] : x[0], 16)"),
    _redistribute("the second exchange is with the wrong lane", "odd ? first : second, 8)", "odd ? first : second, 16)"),
    _redistribute("sums are fetched from lanes of other classes", "__shfl_sync(kFullWarp, sum, 8 * c)",
                  "__shfl_sync(kFullWarp, sum, 4 * c)"),
    _redistribute("the first warp is counted twice", "for (int w = 1; w < kWarps; ++w) x[c] += sums[w][c];",
                  "for (int w = 0; w < kWarps; ++w) x[c] += sums[w][c];"),
    # --- vectors: bounds, alignment, conversions ---
    _vectors("elements past the end of a row are read",
             "if (first + e >= size) continue;\n    const std::uint32_t bits",
             "const std::uint32_t bits"),
    _vectors("elements past the end of a row are written",
             "if (first + e >= size) continue;\n    const std::uint32_t word",
             "const std::uint32_t word"),
    _vectors("a whole vector is loaded across the end of the row",
             "if (aligned && first + kElements <= size) return", "if (aligned && first < size) return"),
    _vectors("a row's alignment is not asked for before a store",
             "if (aligned && first + kElements <= size) {", "if (first + kElements <= size) {"),
    _vectors("an element is loaded into its neighbour's place", "bits << e % (kElements / 4) * 16",
             "bits << (e + 1) % (kElements / 4) * 16"),
    # --- redistribute: classes, rows, geometry ---
    _redistribute("a vector of several classes is summed as one of one",
                  "if (classes == (classes & 3u) * kPure<T>) {\n    float sum", "if (true) {\n    float sum"),
    _redistribute("a vector of several classes is scaled as one of one",
                  "if (classes == (classes & 3u) * kPure<T>) {\n    const float weight",
                  "if (true) {\n    const float weight"),
    _redistribute("only weights below 1 are applied to a whole vector", "if (weight == 1.0f) return false;",
                  "if (weight >= 1.0f) return false;"),
    _redistribute("in a vector of several classes only even elements change", "0xffffu << e % 2 * 16", "0xffffu"),
    _redistribute("classes are those of the first sequence", "if (row.batch != classified) {\n      classified = row.batch;\n"
                  "      float counts", "if (classified < 0) {\n      classified = row.batch;\n      float counts"),
    _redistribute("the second of two class words in a register is the first again",
                  "registers[v / kInRegister] >> v % kInRegister * kBits", "registers[v / kInRegister]"),
    _redistribute("a sequence without a visual sink is redistributed", "facts.has_visual_sink &&", ""),
    _redistribute("the row mask of the first sequence is used for all",
                  "args.row_mask[args.row_mask_stride.offset(row.batch, row.row)]",
                  "args.row_mask[args.row_mask_stride.offset(0, row.row)]"),
    _redistribute("in place rows that are masked out are visited",
                  "if (in_place && !sums_needed) continue;\n\n    const T* probs = args.probs + args.probs_stride."
                  "offset(row.batch, row.head, row.row);\n    T* out = args.out + args.out_stride.offset(row.batch, "
                  "row.head, row.row);\n    const bool probs_aligned = is_vector_aligned(probs);\n    Vector elements",
                  "const T* probs = args.probs + args.probs_stride."
                  "offset(row.batch, row.head, row.row);\n    T* out = args.out + args.out_stride.offset(row.batch, "
                  "row.head, row.row);\n    const bool probs_aligned = is_vector_aligned(probs);\n    Vector elements"),
    _redistribute("the next row is not entered after the last head", "head -= num_heads, ++row;", "head -= num_heads;"),
    _redistribute("warps of a block take each other's rows", "gridDim.x * kGroups);", "gridDim.x);"),
    _redistribute("a row too long for its kernel", "if (num_vectors <= 32 * 4)", "if (num_vectors <= 32 * 5)"),
    _redistribute("too few blocks for the rows", "(num_rows + kGroups - 1) / kGroups", "num_rows / kGroups"),
    _redistribute("a long row's vectors are kept in one place", "kept.elements[v] = elements[u];",
                  "kept.elements[start] = elements[u];"),
    _redistribute("a long row lies on its classes", "memory + class_bytes(args.num_keys)", "memory"),
    _redistribute("a long row is written past its end in shared memory", "if (v >= num_vectors) continue;", ""),
    # --- rotary embedding and the cache ---
    _rotary("the second half turns the other way", "turned<T>(y, take(cos + half), x, take(sin + half))",
            "turned<T>(y, take(cos + half), y, take(sin + half))"),
    _rotary("nothing is subtracted in the first half", "y[e] = -y[e];", "y[e] = +y[e];"),
    _rotary("products are not rounded before they are added", "  unpack<T>(pack<T>(c), c);\n", ""),
    _rotary("a row is stored at its sequence's first place", "const std::int64_t place = args.places[b] + i;",
            "const std::int64_t place = args.places[b];"),
    _rotary("the last place counts as outside", "place >= args.capacity", "place + 1 >= args.capacity"),
    _rotary("values are taken for keys", "if (head < args.num_heads + args.num_kv_heads) {", "if (true) {"),
    _rotary("sink scores are stored once for each head", "if (kv_head == 0 && first == 0) {", "if (kv_head == 1 && first == 0) {"),
    _rotary("the second half of a value is left out", "for (int offset = 0; offset < 2; ++offset) {",
            "for (int offset = 0; offset < 1; ++offset) {"),
    _rotary("all sequences have the first one's angles", "args.cos + args.cos_stride.offset(b, i)",
            "args.cos + args.cos_stride.offset(0, i)"),
    # --- silu of one row times another ---
    _silu_mul("silu is not rounded before it meets up", "  unpack<T>(pack<T>(x), x);\n", ""),
    _silu_mul("a row of up is where gate's would be", "row * args.up_stride", "row * args.gate_stride"),
    _silu_mul("up is taken for as aligned as gate", "is_vector_aligned(up_row)", "is_vector_aligned(gate_row)"),
    _silu_mul("a thread's second vector of up is its first again",
              "load_vector(up_row, first + v * kStep, size, up_aligned)", "load_vector(up_row, first, size, up_aligned)"),
    _silu_mul("the end of a row that fills no block is left out",
              "blocks = (args.row_size + kSiluMulElements<T> - 1) / kSiluMulElements<T>;",
              "blocks = args.row_size / kSiluMulElements<T>;"),
    # --- the largest logit ---
    _greedy("logits are read before they are there", "  follow_previous_kernel();\n", ""),
    _greedy("NaN is passed over", " || logits[e] != logits[e])", ")"),
    _greedy("a lane's NaN loses against a number", "  if (a_is_nan != b_is_nan) return a_is_nan;\n", ""),
    _greedy("of equal logits in a lane the last stays", "logits[e] > best.logit", "logits[e] >= best.logit"),
    _greedy("of equal logits of two lanes the higher token stays", "a.token < b.token", "a.token > b.token"),
    _greedy("the zeros behind a row count", "token < size && (", "("),
    _greedy("the largest may be infinite", "fabsf(best.logit) <= FLT_MAX ? best.token : -1", "best.token"),
    _greedy("no barrier between writing and reading the warps' candidates", "  __syncthreads();\n", ""),
    _greedy("a thread's later vectors are its first again", "load_vector(row, first + v * kStep, size, is_aligned)",
            "load_vector(row, first, size, is_aligned)"),
    _greedy("every row is the first", "static_cast<std::int64_t>(blockIdx.x) * args.row_stride", "0"),
    # --- norms ---
    _norms("no barrier between writing and reading the warps' sums",
           "shared.sums[threadIdx.x / kWarpSize] = x;\n  __syncthreads();", "shared.sums[threadIdx.x / kWarpSize] = x;"),
    _norms("the barrier stands before the sums are written",
           "if (threadIdx.x % kWarpSize == 0) shared.sums[threadIdx.x / kWarpSize] = x;\n  __syncthreads();",
           "__syncthreads();\n  if (threadIdx.x % kWarpSize == 0) shared.sums[threadIdx.x / kWarpSize] = x;"),
    _norms("phi keeps the sign", "shared.sink_values[s] = fabsf(owned_element<T, kThreads>(row, thread, d));",
           "shared.sink_values[s] = owned_element<T, kThreads>(row, thread, d);"),
    _norms("a sink dimension's value comes from another word", "(v * kThreads + thread) * 4 + w;",
           "(v * kThreads + thread) * 4 + (w ^ 1);"),
    _norms("a sink dimension's neighbour is taken", "d % kInWord == 0 ? x[0] : x[kInWord - 1]",
           "d % kInWord == 0 ? x[kInWord - 1] : x[0]"),
    _norms("a dimension outside the token is a sink dimension", "d >= 0 && d < args.hidden_size ?", "d >= 0 ?"),
    _norms("another thread answers for a sink dimension", "d / kElements % kThreads == thread",
           "d / kElements % kThreads == (thread ^ 1)"),
    _norms("eps is left out", "sum / static_cast<float>(size) + args.eps", "sum / static_cast<float>(size)"),
    _norms("the value before the weight is not rounded", "unpack<T>(pack<T>(x), x);", ""),
    _norms("phi and the norm are those of the old residual", "row[v] = rounded_sum<T>(row[v], added[v]);\n"
           "      store_vector(residual, (v * kThreads + thread) * kElements, size, hidden_aligned, row[v]);",
           "store_vector(residual, (v * kThreads + thread) * kElements, size, hidden_aligned,\n"
           "                   rounded_sum<T>(row[v], added[v]));"),
    _norms("a token too wide for its kernel", "if (num_vectors <= 256 * 2)", "if (num_vectors <= 256 * 3)"),
    # --- starts beside the previous kernel ---
    _norms("a norm does not wait for the previous kernel", "  follow_previous_kernel();\n  constexpr int kElements", "  constexpr int kElements"),
    _rotary("keys are turned before they are there", "  follow_previous_kernel();\n", ""),
    _silu_mul("gate and up are read before they are there", "  follow_previous_kernel();\n", ""),
    _decode("a row does not wait for its query", "  follow_previous_kernel();\n", ""),
    _group("grouped rows do not wait for their queries", "  follow_previous_kernel();\n", ""),
    _rows("rows do not wait for their queries", "  follow_previous_kernel();\n", ""),
    _combine("states are merged before they are there", "  follow_previous_kernel();\n", ""),
    # --- linear maps of a few rows ---
    _skinny("input is read before the previous kernel has ended", "  wait_for_previous_kernel();\n", ""),
    _skinny("a row's end that is no whole vector is left out", "v = first_left; v < num_vectors;", "v = first_left; v < num_whole;"),
    _skinny("the end of a row is taken by the wrong thread", "(thread + kSkinnyThreads - num_whole % kSkinnyThreads)", "(thread + num_whole)"),
    _skinny("a block's second weight row is its first again", "n + r % kOutputs;\n  return", "n;\n  return"),
    _skinny("an output past the last is written", "if (n >= args.out_features) n = args.out_features - 1;", ""),
    _skinny("a step asks for the first vectors again", "step.load(args, n, first, num_whole);", "step.load(args, n, thread, num_whole);"),
    _skinny("sums are added up before all warps left theirs", "__syncthreads();\n  if (warp != 0) return;", "if (warp != 0) return;"),
    _skinny("one warp's sums are left out", "w < kSkinnyWarps; ++w) own", "w < kSkinnyWarps - 1; ++w) own"),
    _skinny("rows apart by no multiple of 16 bytes are read in vectors",
            "(reinterpret_cast<std::uintptr_t>(rows) | step) %", "reinterpret_cast<std::uintptr_t>(rows) %"),
    _skinny("the second vector of input meets the elements of the first", "const int place = part * kVectorSize<T> + e;",
            "const int place = e;"),
    _skinny("int8 has no sign", "vector.word[place / 4] ^ 0x80808080u", "vector.word[place / 4]"),
    _skinny("an exchange sends what it keeps", "upper ? x[i] : x[i + kHalf], kOffset",
            "upper ? x[i + kHalf] : x[i], kOffset"),
    _skinny("a step that crosses the end of a row is taken as whole", "load_some<false>(args, n, first, num_whole);",
            "load_some<true>(args, n, first, num_whole);"),
    _skinny("all rows have the first scale", "matrix.scale[n]", "matrix.scale[0]"),
    _skinny("gate and partner change places", "r < Shape::kOutputs ? finished(args.first, n, own) : finished(args.second, n, own)",
            "r < Shape::kOutputs ? finished(args.second, n, own) : finished(args.first, n, own)"),
    _skinny("silu is not rounded before the product", "to_float(from_float<T>(silu(to_float(value))))", "silu(to_float(value))"),
    # --- attention: fragment maps ---
    _fragments("keys are loaded in the map of values", "&keys[lane % 8 + lane / 16 * 8][lane / 8 % 2 * 8 + 16 * step]",
               "&keys[lane % 16][lane / 16 * 8 + 16 * step]"),
    _fragments("values are loaded in the map of keys", "&values[lane % 16][d + lane / 16 * 8]",
               "&values[lane % 8 + lane / 16 * 8][d + lane / 8 % 2 * 8]"),
    _fragments("the query's quarters change places", "query[step][2 * half + i] = load_word",
               "query[step][half + 2 * i] = load_word"),
    _fragments("a row's maximum is that of two of its four lanes", "return fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));",
               "return x;"),
    _fragments("a row takes NaN from a key that it does not see", "(position[2 * i] <= own_limit ? 0x0000ffffu : 0u)",
               "0x0000ffffu"),
    _group("weights are loaded without their second half", "[first / 2 + lane / 16 * 4]", "[first / 2]"),
    # --- attention: asynchronous copies and barriers ---
    _rows("a tile is used while its copies are under way", "wait_for_copies<0>();\n    __syncthreads();  // this tile",
          "__syncthreads();  // this tile"),
    _rows("no barrier before a stage is overwritten",
          "    __syncthreads();  // this tile is there, and nobody reads the one before it any more\n", ""),
    _rows("the next tile is copied over the present one",
          "copy_tile<kClasses>(attention, shared, block, range, next, stage ^ 1);",
          "copy_tile<kClasses>(attention, shared, block, range, next, stage);"),
    _group("keys are used while their copies are under way", "wait_for_copies<1>();", "wait_for_copies<2>();"),
    _group("no barrier between a range and the next", "    __syncthreads();  // the next range overwrites everything\n", ""),
    _decode("weighted values are read before all warps wrote them", "__syncthreads();\n      add_tile", "add_tile"),
    _combine("the list of states is read before it is written", "__syncwarp();\n    LIBVAR_UNROLL", "LIBVAR_UNROLL"),
    # --- attention: masks, classes, ranges ---
    _rows("padding in a tile gets attention", "  if (kFull) return;\n", "  return;\n"),
    _rows("a tile that some row does not see is taken as seen", "count == kRowsKeys && !is_cut", "count == kRowsKeys"),
    _rows("a row's limit is its neighbour's", "range.limit[i / 2];", "range.limit[i % 2];"),
    _rows("a class ends without its state being written", "if (next.c != tile.c) store_class", "if (next.c > tile.c + 1) store_class"),
    _rows("sums are not brought under the new maximum", "    state.sum[i] *= correction;\n", ""),
    _rows("a key's place counts the key itself", "__popc(own & ((1u << lane) - 1u))", "__popc(own & ((2u << lane) - 1u))"),
    _group("a row does not see its own position", "position <= rows.row[i / 2].position",
           "position < rows.row[i / 2].position"),
    _group("in a fragment of several classes odd keys follow even ones", "(shared.kind[key + 8 * half + 1] == c",
           "(shared.kind[key + 8 * half] == c"),
    _decode("the second of two rows sees past its position",
            "if (shared.kind[key] != c || start + key > rows.row[r].position) continue;",
            "if (shared.kind[key] != c) continue;"),
    _decode("a quarter of a warp's streams is left out", "for (int offset = Shape::kLanes; offset < kWarpSize; offset *= 2)",
            "for (int offset = 2 * Shape::kLanes; offset < kWarpSize; offset *= 2)"),
    _ranges("the first key of a range is counted to the one before", "index(num_keys - 1) + 1;", "index(num_keys - 2) + 1;"),
    _ranges("coarse ranges start where fine ones still run", "(num_fine << fine_log2) + ((range - num_fine) << coarse_log2)",
            "((range - num_fine) << coarse_log2)"),
    # --- attention: combine ---
    _combine("class weights are not applied", "weight[c] * exp2_fast(state.maximum - base)", "exp2_fast(state.maximum - base)"),
    _combine("a visual sink behind the row makes it eligible", "facts.first_visual_sink <= row.position",
             "facts.first_visual_sink != INT_MAX"),
    _combine("visual keys of the last range are counted twice", "if (range < row.num_ranges - 1) num_visual", "num_visual"),
    _combine("the maximum is that of the first warp's ranges",
             "for (int i = 0; i < kWarps; ++i) maximum", "for (int i = 0; i < 1; ++i) maximum"),
    _combine("a state is listed where another stands", "num_entries + __popc(there & ((1u << lane) - 1u))",
             "num_entries + __popc(there & ((1u << lane) - 2u))"),
    # --- attention: more of the same kinds ---
    _ranges("the last key's range is left out", "args.ranges.count(tile.last_position + 1)",
               "args.ranges.count(tile.last_position)"),
    _ranges("a group's heads are those of another KV head", "result.head = tile.kv_head * args.group.divisor() + in_group",
               "result.head = tile.kv_head + in_group * args.group.divisor()"),
    _decode("keys past the last row are read", "j < end && d < head_dim", "d < head_dim"),
    _decode("no barrier between scores and their maximum", "attention.scale * kLog2E);\n      __syncthreads();",
            "attention.scale * kLog2E);"),
    _decode("what was summed before does not shrink", "state.out[c][r][i] *= correction[r];", ""),
    _group("no barrier between weights and values", "wait_for_copies<0>();\n    __syncthreads();", "wait_for_copies<0>();"),
    _group("16 keys of two classes count for both", "        if (is_mixed) {", "        if (false) {"),
    _group("NaN reaches rows that do not see it", "const bool is_careful = is_cut &&", "const bool is_careful = false &&"),
    _group("a sink's position counts from its range", "start + first + __ffs", "first + __ffs"),
    _rows("NaN reaches rows that do not see it", "!is_cut || !tile_has_non_finite", "true || !tile_has_non_finite"),
    _rows("a class is filled up with its range's first key", "shared.order[warp][count + lane] = kNoKey",
          "shared.order[warp][count + lane] = 0"),
    _rows("nothing is written for a class without keys", "if (shared.count[c] == 0) store", "if (false) store"),
    _fragments("rows see by another row's position", "limit[0], row % 8 * 4)", "limit[0], row % 8)"),
    _combine("a state without a sum is looked at", "const bool is_there = state.sum != 0.0f;", "const bool is_there = true;"),
]
