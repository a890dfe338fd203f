// SPDX-License-Identifier: Apache-2.0
#include "qcow2/core/engine.h"

#include <algorithm>

#include "qcow2/core/space_retry.h"

namespace byre {

Engine::Engine(Child below, ImageHeader read, ImageOptions wanted)
    : background(below->reactor().ready()),
      file_edge(std::make_unique<PointInTimeFilter>(std::move(below))),
      file(static_cast<PointInTimeFilter*>(file_edge.get())),
      reactor(file->reactor()),
      head(std::move(read)),
      options(std::move(wanted)),
      store(*file, head.geometry, metadata),
      clusters(reactor.ready()),
      shape(reactor.ready()),
      check_mutex(reactor.ready()),
      disk_size(reactor.ready()),
      references(reactor.ready()),
      background_(reactor.ready()),
      idle_(reactor.ready()) {}

Engine::~Engine() { BYRE_ASSERT(closed_); }

Result<void> Request::begin() const {
  if (engine_.closing) {
    return Error(Errc::cancelled, cat(quoted(engine_.name()), " is being closed"), ESHUTDOWN);
  }
  return {};
}

Error Engine::out_of_range(std::string_view what, uint64_t offset, uint64_t length) const {
  return invalid(what, " of ", length, " bytes at ", hex(offset), " passes the end of ",
                 quoted(name()), " at ", hex(size));
}

Result<void> Engine::check_can_write() const {
  if (!options.writable) return Error(Errc::read_only, cat(quoted(name()), " is open read-only"));
  if (*latch) return latch->error().copy();
  return {};
}

Task<void> Engine::throttle_staging() {
  if (!references.is_open()) co_await references.wait();
  while (!can_stage_now()) co_await committer->flush(IoTag::commit_sync);
}

Task<void> Engine::load_refcounts_of(const Mapping& old) {
  const HostSpan span = hosts(old, head.geometry);
  if (const auto hit = metadata.find_in(span)) {
    co_await fail(corrupt("guest data is mapped to ", head.geometry.start_of(*hit),
                          ", which holds metadata; run check -r all"));
  }
  co_await allocator->load(span);
}

Task<void> Engine::prepare_table(const ExclusiveRange& range) {
  const uint64_t l1_index = head.geometry.l1_index(range.first_cluster());
  SpaceRetry retry(*this);
  co_await retry.run(&Map::prepare, *map, l1_index, *allocator);
}

Task<void> Engine::reclaim_space() {
  allocator->reuse_freed();
  if (allocator->limbo_empty()) co_return;
  co_await committer->flush_all();
  co_await allocator->drain_limbo();
}

void Engine::publish(const ExclusiveRange& range, GuestCluster cluster, const Mapping& mapping,
                     const Mapping& old) {
  BYRE_ASSERT(range.covers(cluster));  // L1
  map->stage(cluster, mapping);
  const HostSpan before = hosts(old, head.geometry);
  if (on_removed && old.host && !mapping.host) on_removed(cluster);
  // A stream has references of its own, even in the cluster that the old one was in.
  if (mapping.compressed || before != hosts(mapping, head.geometry)) allocator->release(before);
  schedule_commit();
}

void Engine::belong_to(Device& image) {
  file_edge.belong_to(image, Role::file);
  if (data) data.belong_to(image, Role::data);
  if (backing) backing.belong_to(image, Role::backing);
}

Result<void> Engine::claim_devices() {
  const bool writes = options.writable;
  const Permissions own{.uses = {.read = true, .write = writes, .resize = writes},
                        .shares = Access::reading()};
  if (Result<void> allowed = file_edge.set_permissions(own); !allowed) return allowed;
  if (data) {
    if (Result<void> allowed = data.set_permissions(own); !allowed) return allowed;
  }
  return backing ? backing.set_permissions(kShowsThrough) : Result<void>();
}

// --- Commits by themselves ----------------------------------------------------------------------

void Engine::schedule_commit() {
  // After a failed sync nothing is committed any more.
  if (commit_scheduled_ || closing || *latch || !committer->has_work()) return;
  commit_scheduled_ = true;
  background_.spawn(background_commit());
}

Task<void> Engine::background_commit() {
  timer_ = Op{.kind = Op::Kind::timer, .deadline = reactor.now() + options.commit_delay};
  co_await reactor.perform(timer_);
  commit_scheduled_ = false;
  if (closing) co_return;
  const Gate::Pass pass = co_await background.enter();
  // A failure shows at the next flush; the work is tried again with the next staged entry.
  if (committer->has_work()) (void)co_await committer->flush(IoTag::commit_sync).result();
  schedule_commit();
}

void Engine::spawn(Task<void> task) { background_.spawn(in_background(std::move(task))); }
void Engine::spawn_long(Task<void> task) { background_.spawn(in_parts(std::move(task))); }

/// What runs there may leave something to commit.
Task<void> Engine::in_background(Task<void> task) {
  const Gate::Pass pass = co_await background.enter();
  co_await std::move(task);
  schedule_commit();
}

Task<void> Engine::in_parts(Task<void> task) {
  co_await std::move(task);
  schedule_commit();
}

Task<void> Engine::settle() {
  if (!committer || references.refused()) co_return;
  co_await committer->flush_all();
  co_await allocator->drain_limbo();
  co_await committer->flush_all();
}

Task<void> Engine::end_own_work() {
  (void)co_await references.wait().result();
  if (options.writable) {
    co_await settle();
    // What a healing that failed has left (it is no part of settling) may still become durable.
    if (committer->has_work()) co_await committer->flush_all();
  }
  if (commit_scheduled_) reactor.cancel(timer_);
  (void)co_await background_.join().result();
}

// --- The end ------------------------------------------------------------------------------------

Task<void> Engine::end_requests() {
  closing = true;
  if (!references.decided())
    references.refuse(Error(Errc::cancelled, cat(quoted(name()), " is being closed"), ESHUTDOWN));
  while (running != 0) co_await idle_.wait();
  if (commit_scheduled_) reactor.cancel(timer_);
  (void)co_await background_.join().result();
}

Task<void> Engine::commit_the_rest() {
  // The second commit writes the decrements that the first made possible.
  for (int round = 0; round < 4 && (!allocator->limbo_empty() || committer->has_work()); ++round) {
    epochs.advance();
    allocator->reclaim();
    (void)co_await background_.join().result();
    co_await committer->flush_all();
  }
  co_await committer->finish();
  if (!file->can_grow()) co_return;
  const uint64_t used = std::max(length_at_open, allocator->end_of_use() * cluster_size());
  if (used >= file->size()) co_return;
  co_await file->resize(used);
  co_await file->flush(IoTag::flush);
}

Task<void> Engine::close_below() {
  (void)co_await background_.join().result();
  Error first;
  for (Child* below : {&backing, &data, &file_edge}) {
    Result<void> done = co_await below->close().result();
    if (!done && !first) first = std::move(done).error();
  }
  closed_ = true;
  if (first) co_await fail(std::move(first));
}

Task<void> Engine::flush_what_is_read(IoTag tag) {
  if (flushed_what_is_read_) co_return;
  if (!options.writable) {
    co_await file_edge->flush(tag);
    if (data) co_await data->flush(tag);
  }
  if (backing) co_await backing->flush(tag);
  flushed_what_is_read_ = true;
}

void Engine::abandon() {
  closed_ = true;
  background_.forget();
  background.forget();
  for (Child* below : {&backing, &data, &file_edge}) below->abandon();
}

}  // namespace byre
