// SPDX-License-Identifier: Apache-2.0
#include "cli/kernel_client.h"

#include <utility>

namespace byre {

Task<void> KernelClient::open(std::string device) {
  device_.emplace(co_await NbdDevice::open(reactor_, std::move(device)));
}

Task<void> KernelClient::attach(nbd::ServerRun& run) {
  const Result<void> attached = co_await run.attach(*device_).result();
  if (device_->attached()) watching_.spawn(stop_with_device(run));
  if (!attached) co_await fail(attached.error().copy());
}

Task<void> KernelClient::stop_with_device(nbd::ServerRun& run) {
  co_await device_->ended();
  run.stop();
}

Task<void> KernelClient::leave(nbd::ServerRun& run) {
  if (attached()) {
    written_back_ = co_await device_->flush().result();
    // It fails where somebody else has disconnected it meanwhile.
    const Result<void> gone = co_await device_->disconnect().result();
  }
  run.stop();
}

Task<void> KernelClient::end(nbd::ServerRun& run) {
  run.hang_up();
  co_await watching_.join();
  co_await std::move(written_back_);
}

}  // namespace byre
