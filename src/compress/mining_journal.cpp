#include "compress/mining_journal.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"

namespace lathe {
namespace {

constexpr int64_t kMaxJournalBytes = int64_t{4} << 30;

int open_for_append(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd < 0) fail(ErrorCode::kIo, "cannot open ", path, ": ", std::strerror(errno));
  return fd;
}

void write_all(int fd, const std::string& what, const void* data, std::size_t size) {
  const char* bytes = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = ::write(fd, bytes, size);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) fail(ErrorCode::kIo, "cannot write ", what, ": ", std::strerror(errno));
    bytes += written;
    size -= static_cast<std::size_t>(written);
  }
  if (::fdatasync(fd) != 0) fail(ErrorCode::kIo, "cannot sync ", what, ": ", std::strerror(errno));
}

Json line_of(const MinedQuestion& q) {
  Json tokens = Json::array();
  for (const MinedToken& token : q.tokens) {
    tokens.push_back({token.position, token.important ? 1 : 0, token.target_token,
                      token.draft_token, token.truncated ? 1 : 0});
  }
  return {{"question", q.question},      {"used", q.used},
          {"outcome", q.outcome},        {"answer", q.answer},
          {"tokens", std::move(tokens)}, {"generated", q.generated_tokens}};
}

MinedQuestion question_of(const Json& json) {
  MinedQuestion q;
  q.question = json.at("question").get<int64_t>();
  q.used = json.at("used").get<bool>();
  q.outcome = json.at("outcome").get<std::string>();
  q.answer = json.at("answer").get<std::vector<int32_t>>();
  q.generated_tokens = json.at("generated").get<int64_t>();
  for (const Json& token : json.at("tokens")) {
    q.tokens.push_back({.position = token.at(0).get<int64_t>(),
                        .important = token.at(1).get<int>() != 0,
                        .target_token = token.at(2).get<int32_t>(),
                        .draft_token = token.at(3).get<int32_t>(),
                        .truncated = token.at(4).get<int>() != 0});
  }
  return q;
}

}  // namespace

MiningJournal::MiningJournal(const std::string& directory, const std::string& identity,
                             int64_t hidden_size)
    : directory_(directory), hidden_size_(hidden_size) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) fail(ErrorCode::kIo, "cannot make ", directory, ": ", error.message());
  try {
    journal_fd_ = open_for_append(directory + "/journal.jsonl");
    features_fd_ = open_for_append(directory + "/features.f32");
    load(identity);
  } catch (...) {
    if (journal_fd_ >= 0) ::close(journal_fd_);
    if (features_fd_ >= 0) ::close(features_fd_);
    throw;
  }
}

MiningJournal::~MiningJournal() {
  ::close(journal_fd_);
  ::close(features_fd_);
}

void MiningJournal::load(const std::string& identity) {
  const std::string path = directory_ + "/journal.jsonl";
  const std::string text = read_file(path, kMaxJournalBytes);
  std::size_t whole = 0;  // bytes of complete lines
  bool is_first = true;
  for (std::size_t end = 0; (end = text.find('\n', whole)) != std::string::npos; whole = end + 1) {
    const std::string line = text.substr(whole, end - whole);
    if (is_first) {
      if (line != identity) {
        fail(ErrorCode::kInvalidArgument, directory_,
             " holds the mining of other models, data or options; take another --work directory, "
             "or delete it");
      }
      is_first = false;
      continue;
    }
    try {
      questions_.push_back(question_of(parse_json(line, path)));
    } catch (const Json::exception& error) {
      fail(ErrorCode::kCorruptData, path, ": line ", questions_.size() + 2, ": ", error.what());
    }
    num_rows_ += std::ssize(questions_.back().tokens);
  }
  if (::ftruncate(journal_fd_, static_cast<off_t>(whole)) != 0 ||
      ::lseek(journal_fd_, 0, SEEK_END) < 0) {
    fail(ErrorCode::kIo, "cannot open ", path, ": ", std::strerror(errno));
  }
  if (is_first) write_all(journal_fd_, path, (identity + "\n").data(), identity.size() + 1);
  const int64_t bytes = num_rows_ * hidden_size_ * static_cast<int64_t>(sizeof(float));
  const int64_t present = ::lseek(features_fd_, 0, SEEK_END);
  if (present < bytes) {
    fail(ErrorCode::kCorruptData, directory_, "/features.f32 has ", present,
         " bytes, the journal asks for ", bytes, "; delete the directory to mine again");
  }
  if (::ftruncate(features_fd_, bytes) != 0 || ::lseek(features_fd_, 0, SEEK_END) < 0) {
    fail(ErrorCode::kIo, "cannot open ", directory_, "/features.f32: ", std::strerror(errno));
  }
}

void MiningJournal::append(const MinedQuestion& question) {
  write_all(features_fd_, directory_ + "/features.f32", question.features.data(),
            question.features.size() * sizeof(float));
  const std::string line = dump_json(line_of(question)) + "\n";
  write_all(journal_fd_, directory_ + "/journal.jsonl", line.data(), line.size());
  num_rows_ += std::ssize(question.tokens);
  questions_.push_back(question);
  questions_.back().features.clear();
}

std::vector<float> MiningJournal::load_features() const {
  const int64_t count = num_rows_ * hidden_size_;
  std::vector<float> features(static_cast<std::size_t>(count));
  const auto size = static_cast<std::size_t>(count) * sizeof(float);
  auto* bytes = reinterpret_cast<char*>(features.data());
  for (std::size_t done = 0; done < size;) {
    const ssize_t got = ::pread(features_fd_, bytes + done, size - done, static_cast<off_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      fail(ErrorCode::kIo, "cannot read ", directory_, "/features.f32: ", std::strerror(errno));
    }
    done += static_cast<std::size_t>(got);
  }
  return features;
}

}  // namespace lathe
