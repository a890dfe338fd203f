// SPDX-License-Identifier: Apache-2.0
#include "cli/node_io.h"

#include <utility>

#include "cli/io_shell.h"

namespace byre {

Task<std::string> NodeIo::run_io(NamedNode& node, std::string command) {
  std::string said;
  IoShell::Options options;
  options.out = options.err = [&said](std::string_view text) { said += text; };
  IoShell shell(reactor_, opener_, std::move(options));
  shell.use(Child::to(node.entry()), node.image());
  const Result<void> ran = co_await shell.run(std::move(command)).result();
  co_await shell.finish();
  if (!ran) co_return ran.error().copy();
  co_return std::move(said);
}

}  // namespace byre
