// SPDX-License-Identifier: Apache-2.0
/// KernelClient: `--connect`, this machine's kernel as a client of the server that runs.
///
///     KernelClient kernel(session.reactor());
///     co_await kernel.open("/dev/nbd0");       // is it there?
///     co_await kernel.attach(run);             // behind run.listen()
///     ... co_await kernel.leave(run) where a signal ends the server; then run.serve(), run.end()
///     ... co_await kernel.end(run);
///
/// The device's life is the server's: when the kernel has let go (--disconnect, nbd-client -d), the
/// server ends, whoever else it serves; when a signal ends the server, the kernel first writes back
/// what it holds.
/// Invariant: whoever waits for the device's server to go (NbdDevice::take_away) finds the image
/// closed.
/// Not here: the ioctls (io/nbd_device.h).
#pragma once

#include <optional>
#include <string>

#include "coro/scope.h"
#include "export/nbd_server_run.h"
#include "io/nbd_device.h"

namespace byre {

class KernelClient {
 public:
  explicit KernelClient(Reactor& reactor) : reactor_(reactor), watching_(reactor.ready()) {}

  Task<void> open(std::string device);
  /// When this ends everybody can use the device.
  Task<void> attach(nbd::ServerRun& run);
  bool attached() const { return device_ && device_->attached(); }
  /// Stops `run` when nothing is left with the kernel that it should have.  Safe without a device.
  Task<void> leave(nbd::ServerRun& run);
  /// Behind run.end().  Fails when the kernel could not write back all that it held.
  Task<void> end(nbd::ServerRun& run);

 private:
  Task<void> stop_with_device(nbd::ServerRun& run);

  Reactor& reactor_;
  std::optional<NbdDevice> device_;
  Scope watching_;
  Result<void> written_back_;
};

}  // namespace byre
