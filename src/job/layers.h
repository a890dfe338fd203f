// SPDX-License-Identifier: Apache-2.0
/// The disks of an open backing chain, top first.
///
/// Their depths are those that Device::status() counts: 0 is the top itself.
/// Cost: a step for each device.
/// Not here: the same from headers alone, before anything is open (chain.h).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "block/device.h"
#include "qcow2/ops/replace_backing.h"

namespace byre {

std::vector<Device*> layers_of(Device& top);
/// The edge by which `base` lies in the chain of `top`; null: it does not.
Child* edge_in_chain(Device& top, const Device& base);

/// What the layer is when filters above it (of throttling, bitmaps, jobs) are left out.
Device& without_filters(Device& layer);
/// What the header of the image in the file `image` above is to say of the layer; `file`, when the
/// caller says it.  Names in headers begin at the image's folder, those that users gave at the
/// working directory.  Errc::unsupported for a part of a file: read by its name it would be another
/// disk.
Result<BackingName> name_in_header(Device& layer, const std::string& image,
                                   const std::optional<std::string>& file);

/// Where two chains meet: the first disk of `left` that is in `right` as well, the same file read
/// as the same format, so that all below it is the same, too.
struct Meeting {
  size_t left = 0;  ///< By index.
  size_t right = 0;
};
/// None: no disk is in both, as far as files tell.
std::optional<Meeting> find_meeting(const std::vector<Device*>& left,
                                    const std::vector<Device*>& right);

}  // namespace byre
