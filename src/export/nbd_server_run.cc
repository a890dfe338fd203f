// SPDX-License-Identifier: Apache-2.0
#include "export/nbd_server_run.h"

#include <sys/socket.h>

#include <cerrno>
#include <utility>

namespace byre::nbd {

ServerRun::ServerRun(Reactor& reactor, Child disk, std::string disk_name, ServerOptions options)
    : reactor_(reactor),
      disk_(std::make_shared<Entrance>(std::move(disk))),
      disk_name_(std::move(disk_name)),
      server_(reactor, std::move(options)),
      helpers_(reactor.ready()) {}

Task<void> ServerRun::listen(Export target, ListenPlan plan) {
  plan.export_name = target.name;
  const Access uses{.read = true, .write = target.writable && disk_->device().writable()};
  Permissions permissions{.uses = uses, .shares = Access::all()};
  permissions.shares.resize = false;  // Clients could not be told of another size.
  co_await disk_->edge().set_permissions(permissions);
  target.disk = disk_;
  co_await server_.add_export(std::move(target), true);
  addresses_ = co_await nbd::listen(reactor_, server_, std::move(plan));
}

Task<void> ServerRun::attach(NbdDevice& device) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
    co_await fail(errno_error(errno, "socketpair"));
  const Descriptor kernel(ends[1]);
  server_.add_client(Socket(reactor_, ends[0]), {.agreed = true});
  const Export& target = *server_.exports().find("");
  const Terms terms = terms_of(target, {});
  co_await device.attach(kernel.get(), {.size = terms.size, .flags = terms.flags});
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
  for (const std::function<void()>& stop : stops_) stop();
  for (SignalWatch* watch : watches_) watch->cancel();
  for (Op* timer : timers_) reactor_.cancel(*timer);
  co_await helpers_.join();
  if (!served) co_await fail(served.error().copy());
}

Task<void> ServerRun::end() {
  closing_ = true;
  Result<void> flushed;
  Child& disk = disk_->edge();
  if (disk->writable()) flushed = co_await disk->flush(IoTag::flush).result();
  Result<void> closed = co_await disk.close().result();
  disk.reset();
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
