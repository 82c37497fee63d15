find_package(OpenCV REQUIRED COMPONENTS core imgcodecs)
find_package(nlohmann_json 3.11 REQUIRED)

libvar_add_test(NAME inputs LABELS cpu sanitize
  SOURCES
    unit/image/decode_test.cpp
    unit/image/golden_test.cpp
    unit/image/picture_file_test.cpp
    unit/image/preprocess_test.cpp
    unit/image/resize_test.cpp
    unit/image/sizes_test.cpp
    unit/text/added_tokens_test.cpp
    unit/text/byte_pair_test.cpp
    unit/text/golden_test.cpp
    unit/text/prompt_test.cpp
    unit/text/tokenizer_test.cpp
  LINK libvar::libvar nlohmann_json::nlohmann_json opencv_core opencv_imgcodecs)
