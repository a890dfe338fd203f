// SPDX-License-Identifier: Apache-2.0
#include "export/nbd_server_run.h"

#include <utility>

namespace byre::nbd {

ServerRun::ServerRun(Reactor& reactor, std::unique_ptr<Device> disk, std::string disk_name,
                     ServerOptions options)
    : reactor_(reactor),
      disk_(std::move(disk)),
      disk_name_(std::move(disk_name)),
      server_(reactor, std::move(options)),
      helpers_(reactor.ready()) {}

Task<void> ServerRun::listen(Export target, ListenPlan plan) {
  plan.export_name = target.name;
  target.device = disk_.get();
  co_await server_.add_export(std::move(target), true);
  addresses_ = co_await nbd::listen(reactor_, server_, std::move(plan));
}

Task<void> ServerRun::pause(int64_t ns) {
  Op timer{.kind = Op::Kind::timer, .deadline = reactor_.now() + ns};
  timers_.push_back(&timer);
  co_await reactor_.perform(timer);
  std::erase(timers_, &timer);
}

Task<void> ServerRun::serve() {
  const Result<void> served = co_await server_.serve().result();
  ending_ = true;
  for (SignalWatch* watch : watches_) watch->cancel();
  for (Op* timer : timers_) reactor_.cancel(*timer);
  co_await helpers_.join();
  if (!served) co_await fail(served.error().copy());
}

Task<void> ServerRun::end() {
  closing_ = true;
  Result<void> flushed;
  if (disk_->writable()) flushed = co_await disk_->flush(IoTag::flush).result();
  Result<void> closed = co_await disk_->close().result();
  disk_.reset();
  co_await std::move(flushed);
  co_await std::move(closed);
}

std::string ServerRun::waiting_for() const {
  if (closing_) return cat("the flush and close of ", disk_name_);
  const Statistics& now = statistics();
  return cat(now.requests_running, " request", now.requests_running == 1 ? "" : "s", " to ",
             disk_name_, ", ", now.connections_open, " connection",
             now.connections_open == 1 ? "" : "s");
}

}  // namespace byre::nbd
