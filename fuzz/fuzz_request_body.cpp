// The body of a chat or completion request: parsed within the limits and read field by field.
// Whatever it is, it ends in parameters that the engine takes, or in an Error.
#include <cstdlib>

#include "base/error.h"
#include "base/json.h"
#include "server/api_context.h"
#include "server/chat_prompt.h"
#include "server/output_format.h"
#include "server/sampling_fields.h"
#include "server/stream_options.h"
#include "text/unicode.h"

namespace {

constexpr int64_t kVocabSize = 1000;

// A model that calls tools, so that every field counts.
const lathe::ServedModel& served_model() {
  static const lathe::ChatTemplate chat_template(
      "{% if tools %}<tool_call> arguments{% endif %}{% for m in messages %}{{ m.content }}{% "
      "endfor %}",
      "", "");
  static const lathe::ServedModel model = [] {
    lathe::ServedModel m;
    m.id = "m";
    m.chat_template = &chat_template;
    std::vector<std::string> tokens;
    for (int b = 0; b < 256; ++b) tokens.emplace_back(1, static_cast<char>(b));
    tokens.emplace_back("");
    m.vocabulary =
        std::make_shared<const lathe::TokenTrie>(std::move(tokens), std::vector<int32_t>{256});
    m.vocab_size = kVocabSize;
    return m;
  }();
  return model;
}

// The exceptions are the point: each part is tried, whatever the one before said.
template <typename Read>
void tried(const Read& read) {
  try {
    read();
  } catch (const lathe::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  lathe::HttpRequest request;
  request.body.assign(reinterpret_cast<const char*>(data), size);
  const lathe::ServedModel& model = served_model();
  tried([&] {
    const lathe::Json body =
        lathe::parse_body(request, {.max_depth = 16, .max_keys = 64, .max_values = 1000});
    const lathe::RequestFields fields(body);
    tried([&] { lathe::check_model(fields, model); });
    tried([&] { lathe::refuse_unsupported(fields); });
    tried([&] { lathe::stream_options(fields); });
    for (const bool may_call : {true, false}) {
      tried([&] {
        const lathe::OutputFormat format = lathe::output_format(fields, model, may_call);
        if (format.make_constraint) format.make_constraint();
        if (format.make_parser) {
          // Any text is read, whatever the model wrote.
          format.make_parser()->push(request.body, true);
        }
      });
    }
    tried([&] {
      // What was accepted is what the engine accepts too: its own check must not find more.
      const lathe::SamplingParams params = lathe::sampling_params(fields, model);
      try {
        lathe::validate(params, kVocabSize);
      } catch (const lathe::Error&) {
        std::abort();
      }
    });
    tried([&] {
      const lathe::Json messages = lathe::chat_messages(fields);
      for (const lathe::Json& message : messages) {
        if (!message.at("role").is_string() || !message.at("content").is_string()) std::abort();
      }
    });
    if (const lathe::Json* tokens = fields.find("prompt")) {
      tried([&] {
        for (const int32_t id : lathe::token_ids(*tokens, "prompt", kVocabSize)) {
          if (id < 0 || id >= kVocabSize) std::abort();
        }
      });
    }
  });
  return 0;
}
