// SPDX-License-Identifier: Apache-2.0
/// SpaceRetry: what a request does when the host is full.  Once, what has been freed is made usable
/// (docs/engine.md, H), and it tries again.
///
///     SpaceRetry retry(engine);
///     co_await retry.run(attempt, engine, range);
/// The first attempt's frame is gone before the second begins, so a reservation of it is in limbo
/// by then (H6).
/// An attempt is a function that returns a Task, or such a method and its object.
/// Invariant: space is reclaimed at most once for one SpaceRetry, however many attempts share it.
/// Cost: a coroutine.  Who uses it holds no pin (Engine::reclaim_space).
/// Not here: how freed space becomes usable (Engine::reclaim_space() in engine.cc).
#pragma once

#include <type_traits>
#include <utility>

#include "qcow2/core/engine.h"

namespace byre {

class SpaceRetry {
 public:
  explicit SpaceRetry(Engine& engine) : engine_(engine) {}
  SpaceRetry(const SpaceRetry&) = delete;

  /// attempt(args...), a Task, and once more if that met the end of space.
  template <class Attempt, class... Args>
  std::invoke_result_t<Attempt, Args&...> run(Attempt attempt, Args&... args) {
    auto result = co_await call(attempt, args...).result();
    if (!result) {
      co_await reclaim_after(std::move(result).error());
      result = co_await call(attempt, args...).result();
    }
    if constexpr (std::is_same_v<decltype(result), Result<void>>) {
      co_await std::move(result);
    } else {
      co_return std::move(result);
    }
  }

  /// Makes room for another attempt after one that failed with `error`; fails with that when there
  /// is no use in another.
  Task<void> reclaim_after(Error error) {
    if (error.code() != Errc::no_space || spent_) co_await fail(std::move(error));
    spent_ = true;
    co_await engine_.reclaim_space();
  }

 private:
  template <class T, class... Parameters, class... Args>
  BYRE_CORO_WRAPPER static Task<T> call(Task<T> (*function)(Parameters...), Args&... args) {
    return function(args...);
  }
  template <class T, class Object, class... Parameters, class... Args>
  BYRE_CORO_WRAPPER static Task<T> call(Task<T> (Object::*method)(Parameters...), Object& object,
                                        Args&... args) {
    return (object.*method)(args...);
  }

  Engine& engine_;
  bool spent_ = false;
};

}  // namespace byre
