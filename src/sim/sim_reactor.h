// SPDX-License-Identifier: Apache-2.0
/// SimReactor: the world as a function of one seed.
///
/// Virtual time; every Op lands and completes after a delay drawn from the seed; the coroutine that
/// runs next is any of the ready ones.  A Chooser takes the place of the seed where interleavings
/// are enumerated: then there are no delays, and each step is one of "resume a ready coroutine" and
/// "complete a pending Op" (timers only when nothing else can happen).
///
/// An Op on a descriptor goes to a SimTarget (sim_disk.h, sim_socket.h).  1. begin(), at submit:
/// the target draws what the Op will do.  2. land(), for each part, at points between submit and
/// completion: the part takes effect.  3. finish(), at completion: its result.
///
/// kill_all() is the death of the process: what was issued lands or does not, by the seed, and
/// nothing completes.  The owners then bury() its coroutines and what they refer to, and new_life()
/// begins the next process; descriptors of the old one are gone.  (Scope::forget destroys them, but
/// only if none of them holds or waits for a lock, or has a Scope of its own.)
///
/// When nothing is ready and nothing pending, the simulation has stopped for ever: step() says
/// idle, finish() gives an error that lists what waits (each simulated client names itself by an
/// Activity). Invariant: the same seed, options and calls give the same trace().hash().
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/prng.h"
#include "coro/scope.h"
#include "io/reactor.h"
#include "sim/chooser.h"
#include "sim/trace.h"

namespace byre {

/// What a simulated descriptor leads to.
class SimTarget {
 public:
  virtual ~SimTarget() = default;
  /// Op number `id` was submitted.  In how many parts it will land; nullopt: it waits until the
  /// target calls SimReactor::wake(id).
  virtual std::optional<unsigned> begin(uint64_t id, const Op& op) = 0;
  virtual void land(uint64_t id, const Op& op, unsigned part) = 0;
  virtual int64_t finish(uint64_t id, const Op& op) = 0;
  /// The process died, or the Op was cancelled: `id` neither lands nor finishes any more.  `op` may
  /// be gone.
  virtual void abandon(uint64_t id) = 0;
};

class SimReactor final : public Reactor {
 public:
  struct Delays {
    int64_t min_ns = 1 * kMicrosecond;
    int64_t max_ns = 200 * kMicrosecond;
    uint64_t late_one_in = 0;  ///< One Op in so many takes `late_ns`: after everything else.
    bool late_reads_only = false;
    int64_t late_ns = 60 * kSecond;
  };
  struct Options {
    uint64_t seed = 0;
    Delays delays = {};
    Chooser* chooser = nullptr;
    /// With a Chooser: who waits for an Op runs in the step that completes it.  Far fewer
    /// interleavings, and those left out differ little: nothing runs between the two.
    bool resume_at_once = true;
    uint64_t steps_max = 50'000'000;
  };

  explicit SimReactor(Options options);
  explicit SimReactor(uint64_t seed) : SimReactor(Options{.seed = seed}) {}
  ~SimReactor() override;

  Instant now() const override { return now_; }
  uint64_t random() override { return prng_.next(); }
  void submit(Op& op) override;
  void cancel(Op& op) override;
  /// One step; a simulation that has stopped for ever aborts with the report (Reactor::run has no
  /// other way).
  void turn(Wait wait) override;

  enum class Step : uint8_t {
    resumed,    ///< A coroutine ran.
    delivered,  ///< An Op landed or completed.
    idle,       ///< Nothing is ready and nothing pending.
    limit,      ///< steps_max is used up.
  };
  Step step();

  /// Runs `task` to its end.  When that cannot be reached (idle, limit), the process is killed, the
  /// task abandoned, and failure() says why; the error returned says the same.
  template <class T>
  Result<T> finish(Task<T> task) {
    auto scope = std::make_shared<Scope>(ready());
    auto result = std::make_shared<std::optional<Result<T>>>();
    scope->spawn(keep(std::move(task), *result));
    while (!*result && advance()) {
    }
    if (!*result) {
      kill_all();
      bury(scope);
      bury(result);
      return Error(Errc::busy, failure_);
    }
    return *std::move(*result);
  }
  /// Keeps what a killed process left behind where it is, for ever: for coroutines that cannot be
  /// destroyed where they stand (a Scope inside a frame asserts that its children have ended).
  static void bury(std::shared_ptr<void> remains);
  /// One step, or a failure() when none is possible.
  bool advance();
  /// Steps until `done()`; false with failure() set when that cannot be reached.
  template <class Done>
  bool run_until(Done done) {
    while (!done()) {
      if (!advance()) return false;
    }
    return true;
  }
  /// Steps while virtual time is below now() + ns and something is left to happen.
  void run_for(int64_t ns);

  /// Why the simulation failed (deadlock, an invariant of a target broken); empty while it did not.
  const std::string& failure() const { return failure_; }
  /// Records a failure (the first one counts).
  void fail(std::string text);

  void kill_all();
  /// After kill_all() and once every coroutine of the old life is destroyed.
  void new_life();

  /// Descriptors: far above any real one.
  int attach(std::shared_ptr<SimTarget> target);
  /// What `fd` leads to; null when it is not of this process.
  SimTarget* target(int fd) const;
  /// For targets: the waiting Op `id` completes soon.
  void wake(uint64_t id);

  /// Ops for which this says true do not complete before release_held().
  std::function<bool(const Op&)> hold_if;
  /// How many are held (and have not completed).
  size_t held() const { return held_.size(); }
  void release_held();

  /// Draws new delays from here on.
  void set_delays(Delays delays) { options_.delays = delays; }
  /// Who decides from here on; null: the seed.
  void set_chooser(Chooser* chooser);

  /// Called after every step that landed or completed something: the place to look at disks.
  std::function<void()> after_delivery;

  Trace& trace() { return trace_; }
  Prng& prng() { return prng_; }
  uint64_t steps() const { return steps_; }

  /// Who is at what, for the report of a simulation that stopped.
  class Activity {
   public:
    Activity(SimReactor& reactor, std::string text)
        : reactor_(reactor), id_(reactor.next_activity_++) {
      reactor_.activities_.emplace(id_, std::move(text));
    }
    Activity(const Activity&) = delete;
    ~Activity() { reactor_.activities_.erase(id_); }

   private:
    SimReactor& reactor_;
    uint64_t id_;
  };
  /// Everything that waits: activities, pending Ops, the last events.
  std::string report() const;

 private:
  struct Pending {
    Op* op = nullptr;
    SimTarget* target = nullptr;
    std::optional<unsigned> parts;  ///< nullopt: waits for wake().
    uint64_t landed = 0;            ///< One bit a part.
    bool held = false;
    bool cancelled = false;
  };
  struct Event {
    Instant at;
    uint64_t sequence;
    uint64_t id;
    bool completes;
    unsigned part;
    bool operator>(const Event& other) const {
      return at != other.at ? at > other.at : sequence > other.sequence;
    }
  };

  template <class T>
  static Task<void> keep(Task<T> task, std::optional<Result<T>>& result) {
    result.emplace(co_await std::move(task).result());
  }

  int64_t draw_delay(Op::Kind kind);
  void schedule(uint64_t id, Pending& pending);
  void push_event(int64_t delay, uint64_t id, bool completes, unsigned part);
  bool deliver_next();
  void land(uint64_t id, unsigned part);
  void complete(uint64_t id);
  void resume(size_t index);
  Step step_by_choice();

  Options options_;
  Prng prng_;
  Instant now_;
  Trace trace_;
  uint64_t next_id_ = 1;
  uint64_t next_sequence_ = 0;
  uint64_t steps_ = 0;
  bool dead_ = false;
  std::string failure_;
  std::map<uint64_t, Pending> pending_;
  std::vector<uint64_t> held_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  int next_fd_ = 1 << 24;
  std::map<int, std::shared_ptr<SimTarget>> targets_;
  uint64_t next_activity_ = 0;
  std::map<uint64_t, std::string> activities_;
};

std::string_view name_of(Op::Kind kind);

}  // namespace byre
