// SPDX-License-Identifier: Apache-2.0
/// Task<T>: a coroutine that ends with a Result<T>.
///
///     Task<void> f() {
///       const uint64_t size = co_await file.size();   // the T, or f ends with the error
///       Result<void> r = co_await file.sync().result();  // catches: f goes on
///       co_await check(size);                         // a plain Result: the T, or f ends
///       co_return Error(...);                         // ends with an error
///     }
///
/// 1. A Task is lazy: its body starts when it is awaited (or spawned in a Scope), in the awaiter's
///    turn, and it resumes its awaiter by symmetric transfer.
/// 2. An error passes upwards through every frame that awaits without result(), like an exception
///    but by value: none of them is resumed.  Their locals are destroyed, innermost first, when the
///    frame that catches goes on (or at once, when a Scope is at the top).
/// 3. Destroying a Task that waits for something that still holds its handle is a bug: whoever
///    starts work joins it (scope.h).
///
/// Cost: a frame from the pool (frame_pool.h) and about 20 ns.
/// Not here: waiting for several (scope.h), for time or I/O (io/reactor.h).
#pragma once

#include <coroutine>
#include <cstddef>
#include <exception>
#include <new>
#include <optional>
#include <type_traits>
#include <utility>

#include "base/error.h"
#include "coro/frame_pool.h"

#if defined(__clang__)
/// Clang then flags a Task that outlives a temporary it refers to.
#define BYRE_CORO_RETURN [[clang::coro_return_type, clang::coro_lifetimebound]]
/// On a function that returns a Task but is no coroutine itself.
#define BYRE_CORO_WRAPPER [[clang::coro_wrapper]]
#else
#define BYRE_CORO_RETURN
#define BYRE_CORO_WRAPPER
#endif

namespace byre {

template <class T>
class Task;

namespace detail {

/// What all promises share, so that an error can climb through frames of different types.
class PromiseBase {
 public:
  /// Where this coroutine goes when it ends.  `parent` is null for the top of a chain.
  std::coroutine_handle<> continuation = nullptr;
  PromiseBase* parent = nullptr;  ///< Set when the parent passes errors on.
  Error error;

  static void* operator new(size_t size) { return allocate_frame(size); }
  static void operator delete(void* frame, size_t size) noexcept { free_frame(frame, size); }

  std::suspend_always initial_suspend() noexcept { return {}; }
  [[noreturn]] void unhandled_exception() noexcept { std::terminate(); }

  /// Whom to run next when this coroutine ended: the nearest frame up that wants to know.
  std::coroutine_handle<> finish() noexcept {
    PromiseBase* frame = this;
    if (frame->error) {
      while (frame->parent) {
        frame->parent->error = std::move(frame->error);
        frame = frame->parent;
      }
    }
    return frame->continuation ? frame->continuation : std::noop_coroutine();
  }

  struct FinalAwaiter {
    FinalAwaiter() = default;
    bool await_ready() const noexcept { return false; }
    template <class Promise>
    std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> handle) const noexcept {
      return handle.promise().finish();
    }
    void await_resume() const noexcept {}
  };
  FinalAwaiter final_suspend() noexcept { return {}; }

  /// Awaits a plain Result.
  template <class T>
  struct ResultAwaiter {
    Result<T> result;
    explicit ResultAwaiter(Result<T> r) : result(std::move(r)) {}
    bool await_ready() const noexcept { return result.has_value(); }
    template <class Promise>
    std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> handle) noexcept {
      handle.promise().error = std::move(result).error();
      return handle.promise().finish();
    }
    T await_resume() {
      if constexpr (!std::is_void_v<T>) return *std::move(result);
    }
  };
};

template <class T>
class Promise : public PromiseBase {
 public:
  BYRE_CORO_WRAPPER Task<T> get_return_object() noexcept;
  void return_value(T value) { value_.emplace(std::move(value)); }
  void return_value(Error failed) { error = std::move(failed); }
  void return_value(Result<T> result) {
    if (result) {
      value_.emplace(*std::move(result));
    } else {
      error = std::move(result).error();
    }
  }
  Result<T> take() {
    if (error) return std::move(error);
    return std::move(*value_);
  }
  T take_value() { return std::move(*value_); }

 private:
  std::optional<T> value_;
};

template <>
class Promise<void> : public PromiseBase {
 public:
  BYRE_CORO_WRAPPER Task<void> get_return_object() noexcept;
  void return_void() {}
  Result<void> take() {
    if (error) return std::move(error);
    return {};
  }
  void take_value() {}
};

}  // namespace detail

template <class T = void>
class BYRE_CORO_RETURN [[nodiscard]] Task {
 public:
  using promise_type = detail::Promise<T>;
  using Handle = std::coroutine_handle<promise_type>;

  Task() = default;
  explicit Task(Handle handle) : handle_(handle) {}
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Task& operator=(Task&& other) noexcept {
    if (this != &other) {
      reset();
      handle_ = std::exchange(other.handle_, nullptr);
    }
    return *this;
  }
  ~Task() { reset(); }

  explicit operator bool() const { return handle_ != nullptr; }
  bool done() const { return handle_.done(); }

  class ValueAwaiter {
   public:
    explicit ValueAwaiter(Handle handle) : child_(handle) {}
    bool await_ready() const noexcept { return false; }
    template <class Promise>
    std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> parent) noexcept {
      child_.promise().continuation = parent;
      child_.promise().parent = &parent.promise();
      return child_;
    }
    T await_resume() { return child_.promise().take_value(); }

   private:
    Handle child_;
  };
  /// Gives the value, or ends the awaiting coroutine with the error.
  ValueAwaiter operator co_await() && noexcept { return ValueAwaiter(handle_); }

  class ResultAwaiter {
   public:
    explicit ResultAwaiter(Task task) : task_(std::move(task)) {}
    ResultAwaiter(ResultAwaiter&&) = delete;
    bool await_ready() const noexcept { return false; }
    std::coroutine_handle<> await_suspend(std::coroutine_handle<> parent) noexcept {
      task_.handle_.promise().continuation = parent;
      return task_.handle_;
    }
    Result<T> await_resume() {
      Result<T> result = task_.handle_.promise().take();
      task_.reset();
      return result;
    }

   private:
    Task task_;
  };
  /// Gives the Result, value or error; the task's frame is gone when this returns.
  ResultAwaiter result() && noexcept { return ResultAwaiter(std::move(*this)); }

  /// Names what was being done should it fail; formats nothing otherwise.
  template <class... Parts>
  BYRE_CORO_WRAPPER Task<T> doing(Parts... parts) && {
    return named(std::move(*this), std::move(parts)...);
  }

  /// For Scope and run loops: starts the body with nobody waiting.
  Handle handle() const { return handle_; }

 private:
  template <class... Parts>
  static Task<T> named(Task<T> task, Parts... parts) {
    Result<T> result = co_await std::move(task).result();
    if (!result) co_await Result<void>(std::move(result).error().while_doing(cat(parts...)));
    if constexpr (!std::is_void_v<T>) co_return *std::move(result);
  }

  void reset() {
    if (handle_) std::exchange(handle_, nullptr).destroy();
  }
  Handle handle_ = nullptr;
};

template <class T>
auto operator co_await(Result<T>&& result) noexcept {
  return detail::PromiseBase::ResultAwaiter<T>(std::move(result));
}
template <class T>
auto operator co_await(Result<T>& result) noexcept = delete;  // Say std::move.

namespace detail {
template <class T>
BYRE_CORO_WRAPPER Task<T> Promise<T>::get_return_object() noexcept {
  return Task<T>(std::coroutine_handle<Promise>::from_promise(*this));
}
BYRE_CORO_WRAPPER inline Task<void> Promise<void>::get_return_object() noexcept {
  return Task<void>(std::coroutine_handle<Promise>::from_promise(*this));
}
}  // namespace detail

/// Ends a Task<void> with an error: `co_await fail(corrupt(...))`.  (A coroutine with a value can
/// `co_return` the Error itself; the language lets no promise have both return_void and
/// return_value.)
inline auto fail(Error error) {
  return detail::PromiseBase::ResultAwaiter<void>(Result<void>(std::move(error)));
}

}  // namespace byre
