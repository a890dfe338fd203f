// SPDX-License-Identifier: Apache-2.0
#include "daemon/modules.h"

namespace byre::qmp {

void add_all(CommandSet& set) {
  add_control_commands(set);
  add_descriptor_commands(set);
  add_node_commands(set);
  add_chain_commands(set);
  add_export_commands(set);
  add_bitmap_commands(set);
  add_statistics_commands(set);
  add_qom_commands(set);
  add_job_commands(set);
  add_job_start_commands(set);
  add_backup_command(set);
  add_create_commands(set);
  add_transaction(set);
}

}  // namespace byre::qmp
