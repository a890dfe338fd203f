// SPDX-License-Identifier: Apache-2.0
#include "daemon/qmp_stream.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/assert.h"
#include "base/cat.h"

namespace byre::qmp {

namespace {

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

/// Builds the value as the parser goes, and stops it at the first limit.
class Builder final : public nlohmann::json_sax<Json> {
 public:
  Builder(Json& root, const Stream::Limits& limits) : root_(root), limits_(limits) {}
  std::string problem;

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t&) override { return add(value); }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { return stop("JSON parse error, binary data"); }
  bool start_object(std::size_t) override { return start(Json::object()); }
  bool end_object() override { return end(); }
  bool start_array(std::size_t) override { return start(Json::array()); }
  bool end_array() override { return end(); }
  bool key(string_t& value) override {
    if (levels_.back()->contains(value)) return stop("JSON parse error, duplicate key");
    key_ = std::move(value);
    return true;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception&) override {
    return stop(cat("JSON parse error, at byte ", position));
  }

 private:
  bool stop(std::string what) {
    problem = std::move(what);
    return false;
  }
  Json* put(Json value) {
    if (++items_ > limits_.items_max) {
      stop(cat("JSON value with more than ", limits_.items_max, " values in it"));
      return nullptr;
    }
    if (levels_.empty()) return &(root_ = std::move(value));
    Json& group = *levels_.back();
    if (group.is_array()) {
      group.push_back(std::move(value));
      return &group.back();
    }
    return &(group[key_] = std::move(value));
  }
  bool add(Json value) { return put(std::move(value)) != nullptr; }
  bool start(Json group) {
    Json* const place = put(std::move(group));
    if (!place) return false;
    levels_.push_back(place);
    return levels_.size() <= limits_.depth_max ||
           stop(cat("JSON value with more than ", limits_.depth_max, " levels"));
  }
  bool end() {
    levels_.pop_back();
    return true;
  }

  Json& root_;
  const Stream::Limits& limits_;
  std::vector<Json*> levels_;  ///< Each stays in place until it has ended.
  std::string key_;
  uint32_t items_ = 0;
};

}  // namespace

Json parse_json(const std::string& text, const Stream::Limits& limits, std::string& problem) {
  Json value;
  Builder builder(value, limits);
  if (!Json::sax_parse(text, &builder)) {
    problem = builder.problem.empty() ? "JSON parse error" : std::move(builder.problem);
    return nullptr;
  }
  return value;
}

void Stream::feed(std::string_view piece) {
  BYRE_ASSERT(at_ == piece_.size());
  piece_.assign(piece);
  at_ = 0;
}

Message Stream::next(Instant now) {
  if (!broken_.empty()) return {.kind = Message::Kind::broken, .problem = broken_};
  while (at_ < piece_.size()) {
    const char c = piece_[at_];
    // A word ends before the byte that is none of it.
    const bool ends_word =
        word_ && (is_space(c) || std::string_view("{}[]\"',:").find(c) != std::string_view::npos);
    if (ends_word) return finish(now);
    ++at_;
    if (take(c)) return finish(now);
    if (text_.size() > limits_.text_max) {
      return broken(cat("JSON value of more than ", limits_.text_max, " bytes"));
    }
    if (braces_ + brackets_ > static_cast<int>(limits_.depth_max)) {
      return broken(cat("JSON value with more than ", limits_.depth_max, " levels"));
    }
  }
  return {};
}

bool Stream::take(char c) {
  if (quote_ == '\0') return take_outside(c);
  if (escaped_) {
    escaped_ = false;
    if (c == '\'') text_.pop_back();  // \' is ' in either notation.
    text_ += c;
    return false;
  }
  if (c == quote_) {
    quote_ = '\0';
    text_ += '"';
    return braces_ == 0 && brackets_ == 0;
  }
  escaped_ = c == '\\';
  if (c == '"') text_ += '\\';
  text_ += c;
  return false;
}

bool Stream::take_outside(char c) {
  const bool is_first = text_.empty();
  if (is_first && is_space(c)) return false;
  if (c == '"' || c == '\'') {
    quote_ = c;
    text_ += '"';
    return false;
  }
  text_ += c;
  switch (c) {
    case '{':
      ++braces_;
      return false;
    case '[':
      ++brackets_;
      return false;
    case '}':
      --braces_;
      break;
    case ']':
      --brackets_;
      break;
    default:
      if (!is_first) return false;
      if (c == ',' || c == ':') return true;  // No value begins so.
      word_ = true;
      return false;
  }
  return braces_ < 0 || brackets_ < 0 || (braces_ == 0 && brackets_ == 0);
}

Message Stream::finish(Instant now) {
  const std::string text = std::exchange(text_, {});
  braces_ = brackets_ = 0;
  word_ = false;
  if (now - second_ >= kSecond) {
    second_ = now;
    values_ = 0;
  }
  if (++values_ > limits_.rate_max) {
    return broken(cat("more than ", limits_.rate_max, " JSON values in a second"));
  }
  Message message{.kind = Message::Kind::value};
  message.value = parse_json(text, limits_, message.problem);
  if (!message.problem.empty()) message.kind = Message::Kind::wrong;
  return message;
}

Message Stream::broken(std::string problem) {
  broken_ = std::move(problem);
  text_.clear();
  return {.kind = Message::Kind::broken, .problem = broken_};
}

}  // namespace byre::qmp
