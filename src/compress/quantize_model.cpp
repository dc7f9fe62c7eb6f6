#include "compress/quantize_model.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "base/atomic_file.h"
#include "base/check.h"
#include "base/error.h"
#include "base/json.h"
#include "compress/embed_sequences.h"
#include "compress/hidden_store.h"
#include "compress/product.h"
#include "compress/residual_rotation.h"
#include "compress/stored_layer.h"
#include "formats/compressed_tensors_writer.h"
#include "formats/hf_names.h"

namespace lathe {
namespace {

constexpr int64_t kRowsPerStep = 2048;
constexpr int64_t kDeviceRowsPerStep = 16384;  // what keeps a GPU busy

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// dtype in which tensors that stay dense are stored.
DType store_dtype_of(const Checkpoint& source) {
  return source.is_gguf() ? DType::kBF16 : source.weight_dtype();
}

// One run of quantize_model().
class ModelQuantizer {
 public:
  ModelQuantizer(const QuantizeJob& job, const QuantizeCallbacks& callbacks, Exec& exec)
      : job_(job),
        options_(job.options),
        source_(*job.source),
        config_(source_.config()),
        callbacks_(callbacks),
        ranks_(job.ranks != nullptr ? *job.ranks : solo_),
        exec_(exec),
        store_dtype_(store_dtype_of(source_)),
        calibrates_(options_.needs_calibration()) {}

  QuantizeResult run() {
    check();
    if (ranks_.size() > 1) check_ranks();
    result_.finished_before = leads() && job_.resume && finished_before();
    broadcast_value(ranks_, 0, result_.finished_before);
    if (result_.finished_before) {
      if (leads()) result_.reports = read_reports(job_.out);
      return std::move(result_);
    }
    if (options_.method == QuantizeMethod::kQuaRot) {
      rotation_.emplace(config_.hidden_size, options_.seed);
    }
    if (leads()) open_output();
    broadcast_value(ranks_, 0, first_layer_);
    if (calibrates_) open_calibration();
    for (int64_t layer = first_layer_; layer < config_.num_layers; ++layer) {
      with_context(str("layer ", layer), [&] { quantize_one(layer); });
    }
    // The working files are not part of the model, and finish() lists the directory.
    pass_.reset();
    if (store_) store_->remove();
    store_.reset();
    if (leads()) {
      const CalibrationTimer timer(&profile_, CalibrationStage::kWrite);
      finish_output();
    }
    result_.seconds = seconds_since(start_);
    result_.stage_work = profile_.work();
    result_.stage_seconds = profile_.seconds();
    result_.stage_processor_seconds = profile_.processor_seconds();
    gather_seconds();
    return std::move(result_);
  }

 private:
  bool leads() const { return ranks_.rank() == 0; }

  void gather_seconds() {
    const auto bytes_of = [](StageNumbers& numbers) {
      return std::as_writable_bytes(std::span(numbers.values));
    };
    if (!leads()) {
      ranks_.send(0, bytes_of(result_.stage_seconds));
      ranks_.send(0, bytes_of(result_.stage_processor_seconds));
      return;
    }
    const auto size = static_cast<std::size_t>(ranks_.size());
    result_.rank_seconds.assign(size, result_.stage_seconds);
    result_.rank_processor_seconds.assign(size, result_.stage_processor_seconds);
    for (int rank = 1; rank < ranks_.size(); ++rank) {
      const auto i = static_cast<std::size_t>(rank);
      ranks_.receive(rank, bytes_of(result_.rank_seconds[i]));
      ranks_.receive(rank, bytes_of(result_.rank_processor_seconds[i]));
    }
  }

  // Ranks that were given different things would wait for one another, or worse.
  void check_ranks() {
    if (exec_.on_cuda()) {
      fail(ErrorCode::kUnsupported,
           "several ranks compute on CPUs only; use --device cpu, or one "
           "process on the GPU");
    }
    // Sums are made in parts that all of them divide alike.
    const std::string own =
        str(writer_options().settings, product_is_fused() ? "" : ", without FMA");
    std::string first = own;
    broadcast_text(ranks_, 0, first);
    if (own != first) {
      fail(ErrorCode::kInvalidArgument,
           "another model, calibration text, setting or processor than ", rank_name(ranks_, 0),
           " has: ", own, " instead of ", first);
    }
  }

  void open_output() {
    writer_.emplace(writer_options());
    while (first_layer_ < config_.num_layers && writer_->is_done(first_layer_)) ++first_layer_;
    for (int64_t layer = 0; layer < first_layer_; ++layer) {
      for (LinearReport& report : reports_from_json(writer_->record(layer))) {
        result_.reports.push_back(std::move(report));
      }
    }
  }

  void finish_output() {
    if (!writer_->is_done(config_.num_layers)) write_last_part(*writer_);
    Manifest manifest = job_.manifest;
    for (auto& setting : manifest_settings()) manifest.settings.push_back(std::move(setting));
    if (options_.uses_gptq()) {
      const QuantizeFallbacks fallbacks = count_fallbacks(result_.reports);
      manifest.settings.emplace_back(
          "fallbacks",
          str("linears=", result_.reports.size(), " rounded=", fallbacks.rounded,
              " escalated=", fallbacks.escalated, " with_dead_channels=", fallbacks.dead));
    }
    manifest.quality.push_back(mean_error());
    write_file_atomically(job_.out + "/" + kQuantizeReportsFileName,
                          reports_to_json(result_.reports) + "\n");
    update_file(manifest, job_.out, kQuantizeReportsFileName);
    writer_->finish(std::move(manifest));
  }

  void check() const {
    check_options(options_, !job_.dense_output);
    if (job_.dense_output && options_.activations != ActivationFormat::kNone) {
      fail(ErrorCode::kUnsupported,
           "dense output carries no activation format; take activations none");
    }
    if (calibrates_ && job_.sequences.empty()) {
      fail(ErrorCode::kInvalidArgument, quantize_method_name(options_.method),
           " needs calibration text; name a file with --calibration");
    }
    check_token_ids(job_.sequences, config_.vocab_size);
    if (options_.sequential && (options_.method == QuantizeMethod::kSmoothQuant ||
                                options_.method == QuantizeMethod::kAwq)) {
      fail(ErrorCode::kInvalidArgument, "sequential calibration goes with gptq and mr-gptq, not ",
           "with ", quantize_method_name(options_.method));
    }
  }

  // What the manifest says of the run: everything that determines the weights but the source.
  std::vector<std::pair<std::string, std::string>> manifest_settings() const {
    std::vector<std::pair<std::string, std::string>> settings = {
        {"quantize", settings_text(options_)}};
    if (calibrates_) settings.emplace_back("calibration_sha256", digest_of(job_.sequences));
    if (job_.dense_output) {
      settings.emplace_back("emulates",
                            str(weight_format_name(options_.format), " weights, stored as fp32"));
    }
    return settings;
  }

  // Killed behind the manifest, a run has nothing left to do but to tidy up.
  bool finished_before() const {
    const std::filesystem::path out(job_.out);
    if (!std::filesystem::exists(out / kManifestFileName)) return false;
    const Manifest manifest = read_manifest(job_.out);
    if (manifest.source != job_.manifest.source) return false;
    for (const auto& setting : manifest_settings()) {
      if (std::find(manifest.settings.begin(), manifest.settings.end(), setting) ==
          manifest.settings.end()) {
        return false;
      }
    }
    if (verify_directory(job_.out, /*digests=*/false).state != DirectoryState::kWhole) return false;
    std::filesystem::remove(out / kJournalFileName);
    return true;
  }

  CompressedTensorsOptions writer_options() const {
    CompressedTensorsOptions options;
    options.directory = job_.out;
    options.num_parts = config_.num_layers + 1;
    options.settings = str(settings_text(options_), " source=", source_.path(),
                           " calibration=", digest_of(job_.sequences),
                           " dense_output=", job_.dense_output ? 1 : 0);
    options.resume = job_.resume;
    options.config_json = job_.config_json;
    options.dense_dtype = job_.dense_output ? DType::kF32 : store_dtype_;
    options.auxiliary_files = job_.auxiliary_files;
    if (rotation_) {
      // The last gain moved into lm_head, so the two matrices differ from now on.
      Json config = parse_json(job_.config_json, "config.json");
      config["tie_word_embeddings"] = false;
      options.config_json = dump_json(config, 2);
    }
    return options;
  }

  void open_calibration() {
    store_ = std::make_unique<HiddenStore>(job_.out, lengths_of(job_.sequences),
                                           config_.hidden_size, &ranks_);
    if (first_layer_ == 0) {
      embed_all();
    } else if (first_layer_ < config_.num_layers && !store_->complete(first_layer_)) {
      fail(ErrorCode::kNotFound, job_.out, ": the working files of the interrupted run ",
           "(calibration.0, calibration.1) do not hold the inputs of layer ", first_layer_,
           "; delete the directory and start again");
    }
    pass_ = std::make_unique<LayerPass>(config_, *store_,
                                        exec_.on_cuda() ? kDeviceRowsPerStep : kRowsPerStep, exec_);
    pass_->set_profile(&profile_);
  }

  void embed_all() {
    progress("embedding", 0, 0);
    std::function<void(float*, int64_t)> rotate;
    if (rotation_) {
      rotate = [&](float* rows, int64_t tokens) { rotation_->rotate_rows(rows, tokens, exec_); };
    }
    embed_sequences(source_, job_.sequences, store_dtype_, rotate, *store_, exec_);
  }

  void quantize_one(int64_t layer) {
    progress(str("layer ", layer, ": loading"), layer, 0);
    LayerWeights weights = load(layer);
    for (const LayerLinear& linear : weights.linears) {
      if (linear.weights.quantized) {
        fail(ErrorCode::kUnsupported, linear.slot.module,
             " is quantized already; start from the uncompressed model");
      }
    }
    if (rotation_) rotation_->rotate_layer(weights, config_, exec_);
    const int64_t passes = calibrates_ ? (options_.sequential ? 4 : 1) : 0;
    int64_t pass_idx = 0;
    int64_t last_tokens = 0;
    const OnStage on_stage = [&](const std::string& stage, int64_t tokens) {
      if (stage == "calibrating") {
        if (tokens < last_tokens) ++pass_idx;
        last_tokens = tokens;
      }
      const double share = tokens_share(tokens);
      // A pass that collects takes about twice as long as one that propagates.
      const double of_layer =
          calibrates_ ? 2.0 * (static_cast<double>(pass_idx) + share) / double(2 * passes + 1) : 0;
      progress(str("layer ", layer, ": ", stage), layer, std::min(of_layer, 0.9));
    };
    QuantizedLayer quantized = quantize_layer(std::move(weights), config_, options_, store_dtype_,
                                              pass_.get(), on_stage, ranks_, exec_, &profile_);
    source_.release_pages();
    if (calibrates_ && layer + 1 < config_.num_layers) {
      const CalibrationLayer packed = pack_quantized_layer(quantized, *pass_, exec_, &profile_);
      pass_->propagate(
          packed,
          [&](int64_t tokens) {
            const double base = 2.0 * double(passes) / double(2 * passes + 1);
            progress(str("layer ", layer, ": propagating"), layer,
                     base + (1 - base) * tokens_share(tokens));
          },
          exec_);
    }
    // Done already: an earlier layer was damaged on disk, and this one only had to pass its outputs
    // on.
    if (leads() && !writer_->is_done(layer)) {
      const CalibrationTimer timer(&profile_, CalibrationStage::kWrite);
      const StoredTensors stored =
          stored_layer(quantized, source_, job_.dense_output, store_dtype_);
      writer_->write_part(layer, stored.linears, stored.dense, reports_to_json(quantized.reports));
    }
    for (LinearReport& report : quantized.reports) {
      if (callbacks_.on_linear) callbacks_.on_linear(report);
      result_.reports.push_back(std::move(report));
    }
  }

  LayerWeights load(int64_t layer) {
    const CalibrationTimer timer(&profile_, CalibrationStage::kLoad);
    LayerWeights weights = load_layer_weights(source_, layer, DType::kF32);
    for (const LayerLinear& linear : weights.linears) {
      profile_.add_work(CalibrationStage::kLoad,
                        static_cast<double>(linear.slot.n) * static_cast<double>(linear.slot.k));
    }
    return weights;
  }

  double tokens_share(int64_t tokens) const {
    return store_ ? static_cast<double>(tokens) / static_cast<double>(store_->num_tokens()) : 0;
  }

  // Everything outside the decoder layers.
  void write_last_part(CompressedTensorsWriter& writer) {
    progress("embeddings and head", config_.num_layers, 0);
    StoredTensors stored;
    const auto add = [&](const std::string& name, Tensor tensor) {
      stored.add(stored_name(name, config_.architecture, source_.decoder_prefix()),
                 std::move(tensor));
    };
    if (rotation_) {
      const int64_t rows = config_.vocab_size;
      const Tensor gain = load_norm(source_, "model.norm.weight");
      Tensor head = source_.load_linear("lm_head", DType::kF32).dense;
      rotation_->rotate_reader(head.as<float>(), rows, gain.as<float>(), exec_);
      add("lm_head.weight", convert(head.view(), store_dtype_));
      head = Tensor();
      Tensor embedding = source_.load("model.embed_tokens.weight", DType::kF32);
      rotation_->rotate_rows(embedding.as<float>(), rows, exec_);
      add("model.embed_tokens.weight", convert(embedding.view(), store_dtype_));
      Tensor ones = gain.clone();
      for (int64_t j = 0; j < ones.num_elements(); ++j) ones.as<float>()[j] = 1.0f;
      add("model.norm.weight", stored_gain(ones, config_, store_dtype_));
    } else {
      for (const std::string& name : source_.tensor_names()) {
        if (name.starts_with("model.layers.")) continue;
        add(name, source_.load(name, store_dtype_));
      }
    }
    writer.write_part(config_.num_layers, {}, stored.dense, reports_to_json({}));
    source_.release_pages();
  }

  QualityNumber mean_error() const {
    double sum = 0;
    for (const LinearReport& report : result_.reports) sum += report.error;
    return {.metric = "mean relative squared error of a linear layer",
            .data = calibrates_ ? "outputs on the calibration text" : "weights",
            .value = sum / static_cast<double>(std::max<std::size_t>(result_.reports.size(), 1)),
            .baseline = std::nullopt,
            .settings = ""};
  }

  void progress(const std::string& stage, int64_t layer, double of_layer) {
    if (callbacks_.canceled && callbacks_.canceled()) {
      fail(ErrorCode::kCanceled, "stopped; run again with --resume to go on");
    }
    if (!callbacks_.on_progress) return;
    QuantizeProgress state;
    state.stage = stage;
    state.layer = layer;
    state.num_layers = config_.num_layers;
    const double layers = static_cast<double>(config_.num_layers);
    const double done = static_cast<double>(layer) + of_layer;
    state.fraction = done / layers;
    const double this_run = done - static_cast<double>(first_layer_);
    if (this_run > 0) state.eta_seconds = seconds_since(start_) / this_run * (layers - done);
    callbacks_.on_progress(state);
  }

  const QuantizeJob& job_;
  const QuantizeOptions& options_;
  const Checkpoint& source_;
  const ModelConfig& config_;
  const QuantizeCallbacks& callbacks_;
  SoloCommunicator solo_;
  Communicator& ranks_;
  Exec& exec_;
  DType store_dtype_;
  bool calibrates_;
  Clock::time_point start_ = Clock::now();
  CalibrationProfile profile_;
  int64_t first_layer_ = 0;
  std::optional<ResidualRotation> rotation_;
  std::optional<CompressedTensorsWriter> writer_;  // on rank 0
  std::unique_ptr<HiddenStore> store_;
  std::unique_ptr<LayerPass> pass_;
  QuantizeResult result_;
};

}  // namespace

std::vector<LinearReport> read_reports(const std::string& directory) {
  const std::string path = directory + "/" + kQuantizeReportsFileName;
  if (!std::filesystem::exists(path)) return {};
  return with_context(path, [&] { return reports_from_json(read_file(path)); });
}

QuantizeFallbacks count_fallbacks(std::span<const LinearReport> reports) {
  QuantizeFallbacks fallbacks;
  for (const LinearReport& report : reports) {
    fallbacks.rounded += report.rtn_fallback ? 1 : 0;
    fallbacks.escalated += report.escalations > 0 ? 1 : 0;
    fallbacks.dead += report.dead_columns > 0 ? 1 : 0;
  }
  return fallbacks;
}

std::string describe_fallbacks(std::span<const LinearReport> reports) {
  const QuantizeFallbacks fallbacks = count_fallbacks(reports);
  std::string text;
  const auto add = [&](int64_t count, const char* what) {
    if (count == 0) return;
    text += text.empty() ? str(count, " of ", reports.size(), " linear layers ")
                         : str(", ", count, " ");
    text += what;
  };
  add(fallbacks.rounded, "rounded to nearest (too few calibration tokens reached the expert)");
  add(fallbacks.escalated, "with more damping than asked for (a Hessian near to singular)");
  add(fallbacks.dead, "with input channels that were always zero");
  return text;
}

QuantizeResult quantize_model(const QuantizeJob& job, const QuantizeCallbacks& callbacks,
                              Exec& exec) {
  LATHE_CHECK(job.source != nullptr);
  return ModelQuantizer(job, callbacks, exec).run();
}

}  // namespace lathe
