// SPDX-License-Identifier: Apache-2.0
/// The modules of commands.  Each adds its commands, events and actions of transactions to the set;
/// modules.cc has the list.  What jobs can do comes as one more of them, in a file of its own: a
/// command or an action is a definition (qmp_command.h), an event goes out by Daemon::emit(), and a
/// node that a job holds says so in NamedNode::blockers.
#pragma once

#include "daemon/qmp_command.h"

namespace byre::qmp {

void add_control_commands(CommandSet& set);     // control_commands.cc
void add_descriptor_commands(CommandSet& set);  // descriptor_commands.cc
void add_node_commands(CommandSet& set);        // node_commands.cc
void add_chain_commands(CommandSet& set);       // chain_commands.cc
void add_export_commands(CommandSet& set);      // export_commands.cc
void add_bitmap_commands(CommandSet& set);      // bitmap_commands.cc
void add_statistics_commands(CommandSet& set);  // statistics_commands.cc
void add_qom_commands(CommandSet& set);         // qom_commands.cc
void add_job_commands(CommandSet& set);         // job_commands.cc
void add_job_start_commands(CommandSet& set);   // job_start_commands.cc
void add_backup_command(CommandSet& set);       // backup_command.cc
void add_create_commands(CommandSet& set);      // create_commands.cc
void add_transaction(CommandSet& set);          // transaction.cc

/// All of them.
void add_all(CommandSet& set);

}  // namespace byre::qmp
