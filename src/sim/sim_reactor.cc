// SPDX-License-Identifier: Apache-2.0
#include "sim/sim_reactor.h"

#include <fmt/core.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

namespace byre {

std::string_view name_of(Op::Kind kind) {
  switch (kind) {
    case Op::Kind::read:
      return "read";
    case Op::Kind::write:
      return "write";
    case Op::Kind::sync:
      return "sync";
    case Op::Kind::allocate:
      return "allocate";
    case Op::Kind::punch:
      return "punch";
    case Op::Kind::zero_range:
      return "zero_range";
    case Op::Kind::truncate:
      return "truncate";
    case Op::Kind::accept:
      return "accept";
    case Op::Kind::connect:
      return "connect";
    case Op::Kind::receive:
      return "receive";
    case Op::Kind::send:
      return "send";
    case Op::Kind::poll:
      return "poll";
    case Op::Kind::timer:
      return "timer";
    case Op::Kind::offload:
      return "offload";
  }
  return "unknown";
}

SimReactor::SimReactor(Options options) : options_(options), prng_(options.seed) {}

SimReactor::~SimReactor() = default;

SimTarget* SimReactor::target(int fd) const {
  const auto found = targets_.find(fd);
  return found == targets_.end() ? nullptr : found->second.get();
}

int SimReactor::attach(std::shared_ptr<SimTarget> target) {
  targets_.emplace(next_fd_, std::move(target));
  return next_fd_++;
}

int64_t SimReactor::draw_delay(Op::Kind kind) {
  const Delays& delays = options_.delays;
  const bool may_be_late = !delays.late_reads_only || kind == Op::Kind::read;
  if (delays.late_one_in != 0 && may_be_late && prng_.one_in(delays.late_one_in)) {
    return delays.late_ns + static_cast<int64_t>(prng_.below(1000));
  }
  return static_cast<int64_t>(
      prng_.between(static_cast<uint64_t>(delays.min_ns), static_cast<uint64_t>(delays.max_ns)));
}

void SimReactor::push_event(int64_t delay, uint64_t id, bool completes, unsigned part) {
  events_.push({now_ + std::max<int64_t>(delay, 0), next_sequence_++, id, completes, part});
}

void SimReactor::submit(Op& op) {
  BYRE_ASSERT(!dead_ && !op.pending);
  const uint64_t id = next_id_++;
  op.tag = id;
  op.pending = true;
  op.result = 0;
  Pending pending{.op = &op};
  trace_.add(name_of(op.kind),
             {id, static_cast<uint64_t>(op.fd), op.offset, op.length, uint64_t{op.dsync}});
  switch (op.kind) {
    case Op::Kind::timer:
    case Op::Kind::offload:
      pending.parts = 0;
      break;
    default:
      pending.target = target(op.fd);
      pending.parts = pending.target ? pending.target->begin(id, op) : std::optional<unsigned>(0);
      BYRE_ASSERT(!pending.parts || *pending.parts <= 64);
      break;
  }
  pending.held = hold_if && hold_if(op);
  if (pending.held) held_.push_back(id);
  Pending& kept = pending_.emplace(id, pending).first->second;
  if (!kept.held && kept.parts) schedule(id, kept);
}

void SimReactor::schedule(uint64_t id, Pending& pending) {
  // With a Chooser, an Op lands and completes in one step of the Chooser's choice.
  if (options_.chooser && pending.op->kind != Op::Kind::timer) return;
  if (pending.op->kind == Op::Kind::timer) {
    push_event(pending.op->deadline - now_, id, true, 0);
    return;
  }
  const int64_t total = draw_delay(pending.op->kind);
  for (unsigned part = 0; part < *pending.parts; ++part) {
    push_event(static_cast<int64_t>(prng_.below(static_cast<uint64_t>(total) + 1)), id, false,
               part);
  }
  push_event(total, id, true, 0);
}

void SimReactor::wake(uint64_t id) {
  const auto found = pending_.find(id);
  BYRE_ASSERT(found != pending_.end());
  if (found->second.parts) return;
  found->second.parts = 0;
  if (!found->second.held) schedule(id, found->second);
}

void SimReactor::release_held() {
  const std::vector<uint64_t> released = std::move(held_);
  held_.clear();
  for (const uint64_t id : released) {
    Pending& pending = pending_.at(id);
    pending.held = false;
    if (pending.parts) schedule(id, pending);
  }
}

void SimReactor::set_chooser(Chooser* chooser) {
  const bool chosen = options_.chooser != nullptr;
  options_.chooser = chooser;
  if (!chosen || chooser) return;
  for (auto& [id, pending] : pending_) {
    const bool timer = pending.op->kind == Op::Kind::timer;
    if (!timer && pending.parts && !pending.held) schedule(id, pending);
  }
}

void SimReactor::cancel(Op& op) {
  if (!op.pending) return;
  const auto found = pending_.find(op.tag);
  if (found == pending_.end() || found->second.cancelled) return;
  Pending& pending = found->second;
  const bool soon = op.kind == Op::Kind::timer || !pending.parts;
  const bool untouched = pending.target && pending.landed == 0 && prng_.one_in(2);
  trace_.add("cancel", {found->first, uint64_t{soon}});
  if (!soon && !untouched) return;  // Too late: it runs to its end.
  if (pending.target) pending.target->abandon(found->first);
  pending.cancelled = true;
  pending.target = nullptr;
  pending.parts = 0;
  pending.held = false;
  std::erase(held_, found->first);
  if (!options_.chooser || op.kind == Op::Kind::timer) push_event(0, found->first, true, 0);
}

void SimReactor::land(uint64_t id, unsigned part) {
  const auto found = pending_.find(id);
  if (found == pending_.end() || found->second.cancelled) return;
  trace_.add("land", {id, part});
  found->second.landed |= uint64_t{1} << part;
  found->second.target->land(id, *found->second.op, part);
}

void SimReactor::complete(uint64_t id) {
  const auto found = pending_.find(id);
  if (found == pending_.end()) return;  // A timer that was cancelled and has completed.
  Pending pending = found->second;
  Op& op = *pending.op;
  if (pending.cancelled) {
    op.result = -ECANCELED;
  } else if (op.kind == Op::Kind::offload) {
    op.work(op.argument);
    op.result = 0;
  } else if (op.kind == Op::Kind::timer) {
    op.result = 0;
  } else if (!pending.target) {
    op.result = -EBADF;
  } else {
    op.result = pending.target->finish(id, op);
  }
  pending_.erase(id);
  op.pending = false;
  trace_.add("done", {id, static_cast<uint64_t>(op.result)});
  ready().push(op.waiter);
}

bool SimReactor::deliver_next() {
  if (events_.empty()) return false;
  const Event event = events_.top();
  events_.pop();
  now_ = std::max(now_, event.at);
  if (event.completes) {
    complete(event.id);
  } else {
    land(event.id, event.part);
  }
  if (after_delivery) after_delivery();
  return true;
}

void SimReactor::resume(size_t index) {
  trace_.add("resume", {index, ready().size()});
  ready().take(index).resume();
}

SimReactor::Step SimReactor::step() {
  BYRE_ASSERT(!dead_);
  if (steps_ >= options_.steps_max) return Step::limit;
  ++steps_;
  if (options_.chooser) return step_by_choice();
  // Now and then something completes while coroutines are ready; running them takes no longer.
  const bool near = !events_.empty() && events_.top().at <= now_ + options_.delays.max_ns;
  const bool early = near && prng_.one_in(8);
  if (!ready().empty() && !early) {
    resume(prng_.below(ready().size()));
    return Step::resumed;
  }
  return deliver_next() ? Step::delivered : Step::idle;
}

SimReactor::Step SimReactor::step_by_choice() {
  std::vector<uint64_t> completable;
  for (const auto& [id, pending] : pending_) {
    const bool timer = pending.op->kind == Op::Kind::timer;
    if (!timer && pending.parts && !pending.held) completable.push_back(id);
  }
  const size_t count = ready().size() + completable.size();
  if (count == 0) return deliver_next() ? Step::delivered : Step::idle;
  const size_t choice = count == 1 ? 0 : options_.chooser->choose(count);
  if (choice < ready().size()) {
    resume(choice);
    return Step::resumed;
  }
  const uint64_t id = completable[choice - ready().size()];
  now_ = now_ + kMicrosecond;
  const Pending& pending = pending_.at(id);
  const unsigned parts = pending.cancelled ? 0 : *pending.parts;
  for (unsigned part = 0; part < parts; ++part) land(id, part);
  complete(id);
  if (after_delivery) after_delivery();
  if (options_.resume_at_once) resume(ready().size() - 1);
  return Step::delivered;
}

bool SimReactor::advance() {
  if (!failure_.empty()) return false;
  switch (step()) {
    case Step::resumed:
    case Step::delivered:
      return failure_.empty();
    case Step::idle:
      fail(cat("deadlock: nothing is ready and nothing pending\n", report()));
      return false;
    case Step::limit:
      fail(cat("no end after ", steps_, " steps\n", report()));
      return false;
  }
  return false;
}

void SimReactor::run_for(int64_t ns) {
  const Instant end = now_ + ns;
  while (failure_.empty()) {
    if (ready().empty() && (events_.empty() || events_.top().at >= end) && !options_.chooser) break;
    if (now_ >= end) break;
    const Step made = step();
    if (made == Step::idle || made == Step::limit) break;
  }
  now_ = std::max(now_, end);
}

void SimReactor::turn(Wait wait) {
  if (wait == Wait::no && ready().empty() && (events_.empty() || events_.top().at > now_)) return;
  if (advance()) return;
  std::fprintf(stderr, "simulation: %s\n", failure_.c_str());
  std::abort();
}

void SimReactor::fail(std::string text) {
  if (!failure_.empty()) return;
  failure_ = std::move(text);
  trace_.say(failure_);
}

void SimReactor::kill_all() {
  if (dead_) return;
  trace_.add("kill", {pending_.size(), ready().size()});
  // Of each write under way, each part that has not landed may still do so.
  for (auto& [id, pending] : pending_) {
    if (!pending.target) continue;
    for (unsigned part = 0; pending.parts && part < *pending.parts; ++part) {
      const bool waits = (pending.landed >> part & 1) == 0;
      if (waits && prng_.one_in(2)) pending.target->land(id, *pending.op, part);
    }
    pending.target->abandon(id);
  }
  pending_.clear();
  held_.clear();
  events_ = {};
  ready().clear();
  targets_.clear();
  hold_if = nullptr;
  dead_ = true;
}

void SimReactor::bury(std::shared_ptr<void> remains) {
  static auto& graveyard = *new std::vector<std::shared_ptr<void>>();
  graveyard.push_back(std::move(remains));
}

void SimReactor::new_life() {
  BYRE_ASSERT(dead_);
  BYRE_ASSERT(pending_.empty());
  ready().clear();  // What dying locks woke.
  activities_.clear();
  dead_ = false;
}

std::string SimReactor::report() const {
  std::string text = fmt::format("at {} us, step {}\n", now_.ns / 1000, steps_);
  for (const auto& [id, activity] : activities_) text += cat("  waits: ", activity, "\n");
  for (const auto& [id, pending] : pending_) {
    text += fmt::format("  pending: op {} {} fd {} offset {:#x} length {:#x}{}\n", id,
                        name_of(pending.op->kind), pending.op->fd, pending.op->offset,
                        pending.op->length, pending.held ? " (held)" : "");
  }
  return text + "last events:\n" + trace_.recent();
}

}  // namespace byre
