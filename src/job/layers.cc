// SPDX-License-Identifier: Apache-2.0
#include "job/layers.h"

#include <algorithm>
#include <filesystem>

#include "block/graph.h"
#include "block/raw.h"
#include "block/slice.h"
#include "block/whole_sectors.h"
#include "qcow2/image.h"

namespace byre {

namespace {

/// The device below `device` in the chain; null: none.  Filters are no layers.
Device* next_layer(const Device& device) {
  for (const Child* edge : device.children()) {
    if (edge->role() == Role::backing) return edge->get();
    if (edge->role() == Role::filtered) return next_layer(**edge);
  }
  return nullptr;
}

/// A file, and what it is read as.
struct Identity {
  uint64_t device = 0;
  uint64_t inode = 0;
  bool is_image = false;
  bool operator==(const Identity&) const = default;
};

/// None for what is not a file as a whole.
std::optional<Identity> identity_of(Device& layer) {
  Device* device = &layer;
  if (const auto* whole = dynamic_cast<WholeSectors*>(device)) device = &whole->below();
  Identity identity;
  if (auto* image = dynamic_cast<Image*>(device)) {
    identity.is_image = true;
    device = &image->file();
    if (const auto* frozen = dynamic_cast<Filter*>(device)) device = &frozen->below();
  }
  auto* raw = dynamic_cast<RawDevice*>(device);
  if (!raw) return std::nullopt;
  identity.device = raw->file().properties().device;
  identity.inode = raw->file().properties().inode;
  if (identity.device == 0 && identity.inode == 0) return std::nullopt;
  return identity;
}

}  // namespace

std::vector<Device*> layers_of(Device& top) {
  std::vector<Device*> layers;
  for (Device* layer = &top; layer; layer = next_layer(*layer)) layers.push_back(layer);
  return layers;
}

Device& without_filters(Device& layer) {
  Device* device = &layer;
  for (bool down = true; down;) {
    down = false;
    for (const Child* edge : device->children()) {
      if (edge->role() != Role::filtered) continue;
      device = edge->get();
      down = true;
      break;
    }
  }
  return *device;
}

/// The file `layer` as the header of the image at `image` has to call it.
static std::string name_from(const std::string& image, const std::string& layer) {
  if (layer.starts_with('/') || layer.find(':') != std::string::npos) return layer;
  const std::filesystem::path folder = std::filesystem::path(image).parent_path();
  const std::filesystem::path file(layer);
  if (folder == file.parent_path()) return file.filename().string();
  std::error_code unknown;
  const std::filesystem::path whole = std::filesystem::absolute(file, unknown);
  return unknown ? layer : whole.string();
}

Result<BackingName> name_in_header(Device& layer, const std::string& image,
                                   const std::optional<std::string>& file) {
  for (Device* device = &layer; device != &without_filters(layer);) {
    const auto down = std::ranges::find(device->children(), Role::filtered, &Child::role);
    if (dynamic_cast<Slice*>(device) && !file) {
      return unsupported("the header of an image cannot say that only a part of ",
                         byre::quoted(device->name()),
                         " lies below it: give it a node over the whole file, or say what it is "
                         "called");
    }
    device = (*down)->get();
  }
  Device& device = without_filters(layer);
  return BackingName{.file = file.value_or(name_from(image, device.name())),
                     .format = dynamic_cast<Image*>(&device) ? "qcow2" : "raw"};
}

Child* edge_in_chain(Device& top, const Device& base) {
  for (Device* at = &top; at;) {
    Child* down = nullptr;
    for (Child* edge : at->children()) {
      if (edge->role() == Role::filtered || edge->role() == Role::backing) down = edge;
    }
    if (down && down->get() == &base) return down;
    at = down ? down->get() : nullptr;
  }
  return nullptr;
}

std::optional<Meeting> find_meeting(const std::vector<Device*>& left,
                                    const std::vector<Device*>& right) {
  for (size_t i = 0; i < left.size(); ++i) {
    const std::optional<Identity> mine = identity_of(*left[i]);
    if (!mine) continue;
    for (size_t j = 0; j < right.size(); ++j) {
      if (identity_of(*right[j]) == mine) return Meeting{i, j};
    }
  }
  return std::nullopt;
}

}  // namespace byre
