#include "compress/mining_journal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <limits>
#include <set>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "formats/json_fields.h"

namespace lathe {
namespace {

constexpr int64_t kMaxJournalBytes = int64_t{4} << 30;
constexpr char kRankPrefix[] = "rank-";

int open_for_append(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd < 0) fail(ErrorCode::kIo, "cannot open ", path, ": ", std::strerror(errno));
  return fd;
}

// Where the file system has no locks, nothing is locked.
void lock(int fd, const std::string& directory) {
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return;
  fail(ErrorCode::kIo, directory, ": another process is mining into it");
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

constexpr int64_t kMaxCount = std::numeric_limits<int32_t>::max();  // of questions and tokens

// [position, important, target token, draft token, truncated], as mining_journal_line() has it.
MinedToken token_of(const Json& json, const JsonFields& line) {
  int64_t numbers[5];
  bool is_good = json.is_array() && json.size() == std::size(numbers);
  for (std::size_t i = 0; is_good && i < std::size(numbers); ++i) {
    const int64_t max = i == 1 || i == 4 ? 1 : kMaxCount;
    is_good = json[i].is_number_unsigned() && json[i].get<uint64_t>() <= static_cast<uint64_t>(max);
    if (is_good) numbers[i] = json[i].get<int64_t>();
  }
  if (!is_good) line.refuse("tokens", "must be lists of five whole numbers");
  return {.position = numbers[0],
          .important = numbers[1] != 0,
          .target_token = static_cast<int32_t>(numbers[2]),
          .draft_token = static_cast<int32_t>(numbers[3]),
          .truncated = numbers[4] != 0};
}

MinedQuestion question_of(const JsonFields& line) {
  MinedQuestion q;
  q.question = line.integer("question", 0, kMaxCount);
  if (!line.has("used")) line.refuse("used", "is missing");
  q.used = line.boolean_or("used", false);
  q.outcome = line.text("outcome");
  for (const int64_t id : line.integers("answer", 0, kMaxCount)) {
    q.answer.push_back(static_cast<int32_t>(id));
  }
  q.generated_tokens = line.integer("generated", 0, std::numeric_limits<int64_t>::max());
  const Json* tokens = line.find("tokens");
  if (tokens == nullptr || !tokens->is_array()) line.refuse("tokens", "must be a list");
  for (const Json& token : *tokens) q.tokens.push_back(token_of(token, line));
  return q;
}

}  // namespace

std::string mining_journal_line(const MinedQuestion& q) {
  Json tokens = Json::array();
  for (const MinedToken& token : q.tokens) {
    tokens.push_back({token.position, token.important ? 1 : 0, token.target_token,
                      token.draft_token, token.truncated ? 1 : 0});
  }
  return dump_json({{"question", q.question},
                    {"used", q.used},
                    {"outcome", q.outcome},
                    {"answer", q.answer},
                    {"tokens", std::move(tokens)},
                    {"generated", q.generated_tokens}});
}

MiningJournalText parse_mining_journal(std::string_view text, const std::string& identity,
                                       const std::string& path) {
  MiningJournalText journal;
  std::size_t begin = 0;
  for (std::size_t end = 0; (end = text.find('\n', begin)) != std::string_view::npos;
       begin = end + 1) {
    const std::string_view line = text.substr(begin, end - begin);
    if (!journal.has_identity) {
      if (line != identity) {
        fail(ErrorCode::kInvalidArgument, path,
             " holds the mining of other models, data or options; take another --work directory, "
             "or delete it");
      }
      journal.has_identity = true;
      continue;
    }
    const std::string what = str(path, ": line ", journal.questions.size() + 2);
    const Json json = parse_json(line, what);
    journal.questions.push_back(question_of(JsonFields(json, what)));
    journal.num_rows += std::ssize(journal.questions.back().tokens);
  }
  journal.whole_bytes = static_cast<int64_t>(begin);
  return journal;
}

std::vector<MinedQuestion> MiningJournal::read_questions(const std::string& directory,
                                                         const std::string& identity) {
  const std::string path = directory + "/journal.jsonl";
  if (!std::filesystem::exists(path)) return {};
  return parse_mining_journal(read_file(path, kMaxJournalBytes), identity, path).questions;
}

MiningJournal::MiningJournal(const std::string& directory, const std::string& identity,
                             int64_t hidden_size)
    : directory_(directory), identity_(identity), hidden_size_(hidden_size) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) fail(ErrorCode::kIo, "cannot make ", directory, ": ", error.message());
  try {
    journal_fd_ = open_for_append(directory + "/journal.jsonl");
    lock(journal_fd_, directory);
    features_fd_ = open_for_append(directory + "/features.f32");
    load();
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

void MiningJournal::load() {
  const std::string path = directory_ + "/journal.jsonl";
  MiningJournalText journal =
      parse_mining_journal(read_file(path, kMaxJournalBytes), identity_, path);
  questions_ = std::move(journal.questions);
  num_rows_ = journal.num_rows;
  if (::ftruncate(journal_fd_, static_cast<off_t>(journal.whole_bytes)) != 0 ||
      ::lseek(journal_fd_, 0, SEEK_END) < 0) {
    fail(ErrorCode::kIo, "cannot open ", path, ": ", std::strerror(errno));
  }
  if (!journal.has_identity) {
    write_all(journal_fd_, path, (identity_ + "\n").data(), identity_.size() + 1);
  }
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
  const std::string line = mining_journal_line(question) + "\n";
  write_all(journal_fd_, directory_ + "/journal.jsonl", line.data(), line.size());
  num_rows_ += std::ssize(question.tokens);
  questions_.push_back(question);
  questions_.back().features.clear();
}

std::string MiningJournal::directory_of_rank(const std::string& directory, int rank) {
  return rank == 0 ? directory : str(directory, "/", kRankPrefix, rank);
}

void MiningJournal::absorb_ranks() {
  std::set<int64_t> present;
  for (const MinedQuestion& question : questions_) present.insert(question.question);
  std::vector<std::string> folders;
  for (const auto& entry : std::filesystem::directory_iterator(directory_)) {
    if (entry.is_directory() && entry.path().filename().string().starts_with(kRankPrefix)) {
      folders.push_back(entry.path().string());
    }
  }
  std::sort(folders.begin(), folders.end());
  for (const std::string& folder : folders) {
    {
      const MiningJournal other(folder, identity_, hidden_size_);
      const std::vector<float> features = other.load_features();
      auto next = features.begin();
      for (MinedQuestion question : other.questions()) {
        const int64_t count = std::ssize(question.tokens) * hidden_size_;
        question.features.assign(next, next + count);
        next += count;
        if (present.insert(question.question).second) append(question);
      }
    }
    std::filesystem::remove_all(folder);
  }
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
