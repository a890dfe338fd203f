// SPDX-License-Identifier: Apache-2.0
/// Error and Result: what failed, where, and why, at no cost while nothing fails.
///
/// An Error is one owning pointer, null when there is none: eight bytes, no allocation until
/// something fails.  Its sentence is built from the outside in by doing(): "open disk.qcow2: L1
/// table at 0x30000: read 65536 bytes: Input/output error".
/// Three kinds, never mixed: a bad image is Errc::corrupt, the world is the other codes, a bug of
/// ours is BYRE_ASSERT.
/// Invariant: a Result holds a value or an Error that is not null.
#pragma once

#include <cstdint>
#include <expected>
#include <memory>
#include <source_location>
#include <string>
#include <string_view>
#include <utility>

#include "base/assert.h"
#include "base/cat.h"

namespace byre {

/// What kind of failure it was; callers branch on this, people read the message.
enum class Errc : uint8_t {
  corrupt,      ///< The image breaks its format.
  io,           ///< The disk, the network or the kernel failed.
  no_space,     ///< No space left where bytes were to go.
  unsupported,  ///< Sound, but not what byre can do (yet).
  invalid,      ///< The caller's request makes no sense.
  read_only,    ///< A write to something that was opened without that right.
  not_found,    ///< No such file, snapshot, export.
  exists,       ///< Would overwrite what is there.
  denied,       ///< Policy or permissions forbid it.
  cancelled,    ///< Stopped because somebody asked.
  busy,         ///< Somebody else holds it.
};

std::string_view name_of(Errc code);

/// Text from an image or a client, safe to print: quotes around, control bytes and invalid UTF-8
/// escaped as \xNN.
std::string quoted(std::string_view text);

class [[nodiscard]] Error {
 public:
  Error() = default;
  Error(Errc code, std::string message, int sys_errno = 0,
        std::source_location where = std::source_location::current());
  Error(Error&&) noexcept = default;
  Error& operator=(Error&&) noexcept = default;

  /// True when there is an error.
  explicit operator bool() const { return rep_ != nullptr; }

  Errc code() const { return rep_->code; }
  /// The errno behind it, or the one that fits the code best: what a client of a wire protocol is
  /// told.  Never 0.
  int sys_errno() const;
  const std::string& message() const { return rep_->message; }
  /// Where in byre's source it was first made.
  const std::source_location& where() const { return rep_->where; }

  /// Puts what was being done in front: "doing: message".
  Error while_doing(std::string_view what) &&;
  /// A second error with the same words, for requests that share one failure.
  Error copy() const;

 private:
  struct Rep {
    Errc code;
    int sys_errno;
    std::source_location where;
    std::string message;
  };
  std::unique_ptr<Rep> rep_;
};

/// An error from the kernel: `number` is a positive errno, its text ends the sentence.
Error errno_error(int number, std::string_view what,
                  std::source_location where = std::source_location::current());

/// The image breaks its format: the parts are joined by cat().
template <class... Parts>
Error corrupt(const Parts&... parts) {
  return Error(Errc::corrupt, cat(parts...));
}
template <class... Parts>
Error invalid(const Parts&... parts) {
  return Error(Errc::invalid, cat(parts...));
}
template <class... Parts>
Error unsupported(const Parts&... parts) {
  return Error(Errc::unsupported, cat(parts...));
}

template <class T>
class [[nodiscard]] Result {
 public:
  using value_type = T;
  Result(T value) : held_(std::move(value)) {}
  template <class U>
    requires(std::is_convertible_v<U &&, T> && !std::is_same_v<std::remove_cvref_t<U>, Error> &&
             !std::is_same_v<std::remove_cvref_t<U>, Result>)
  Result(U&& value) : held_(T(std::forward<U>(value))) {}
  Result(Error error) : held_(std::unexpected(std::move(error))) {
    BYRE_ASSERT(bool(held_.error()));
  }

  bool has_value() const { return held_.has_value(); }
  explicit operator bool() const { return has_value(); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(value()); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  T& value() & {
    BYRE_ASSERT(has_value());
    return *held_;
  }
  const T& value() const& {
    BYRE_ASSERT(has_value());
    return *held_;
  }
  Error& error() & { return held_.error(); }
  const Error& error() const& { return held_.error(); }
  Error error() && { return std::move(held_.error()); }
  /// Names what was being done, if this is an error; formats nothing otherwise.
  template <class... Parts>
  Result doing(const Parts&... parts) && {
    if (!has_value()) held_.error() = std::move(held_.error()).while_doing(cat(parts...));
    return std::move(*this);
  }

 private:
  std::expected<T, Error> held_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  using value_type = void;
  Result() = default;
  Result(Error error) : error_(std::move(error)) { BYRE_ASSERT(bool(error_)); }

  bool has_value() const { return !error_; }
  explicit operator bool() const { return has_value(); }
  Error& error() & { return error_; }
  const Error& error() const& { return error_; }
  Error error() && { return std::move(error_); }
  template <class... Parts>
  Result doing(const Parts&... parts) && {
    if (error_) error_ = std::move(error_).while_doing(cat(parts...));
    return std::move(*this);
  }

 private:
  Error error_;
};

}  // namespace byre

/// In a plain function that returns a Result or an Error: gives the value of a Result, or returns
/// its error.  Not for coroutines: those co_await the Result.
#define BYRE_TRY(name, expression)                             \
  auto name##_result = (expression);                           \
  if (!name##_result) return std::move(name##_result).error(); \
  auto& name = *name##_result
