/* Calls a parser of boxes as nvinfer does: loads the library, looks the function up, and gives it the output layers of one frame after the other.
 *
 *     call_parser LIBRARY FUNCTION < frames > objects
 *
 * A frame, in the byte order of the machine: uint32 width and height of the network's input, uint32 numClassesConfigured, uint32 number of
 * thresholds and the float32 thresholds, uint32 number of layers, and for each layer: uint32 length of its name (0 for none) and the name,
 * uint32 data type, uint32 number of dimensions and the uint32 dimensions, uint32 whether there is a buffer, uint64 bytes in it, and these.
 * Objects of a frame: uint32 what the function returned, uint32 their number, and for each: uint32 class, and float32 left, top, width, height,
 * confidence and rotation.
 *
 * Each buffer is allocated with just its bytes, so that the address sanitizer sees what is read beyond them.
 */

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "nvdsinfer_custom_impl.h"

namespace {

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "call_parser: %s\n", what);
  std::exit(2);
}

template <typename T>
bool try_read(T& value) {
  return std::fread(&value, sizeof value, 1, stdin) == 1;
}

template <typename T>
T read() {
  T value{};
  if (!try_read(value)) {
    fail("a frame ends too early");
  }
  return value;
}

template <typename T>
void write(T value) {
  if (std::fwrite(&value, sizeof value, 1, stdout) != 1) {
    fail("cannot write");
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    fail("give a library and a function");
  }
  void* library = dlopen(arguments[1], RTLD_LAZY);
  if (library == nullptr) {
    fail(dlerror());
  }
  auto parse = reinterpret_cast<NvDsInferParseCustomFunc>(dlsym(library, arguments[2]));
  if (parse == nullptr) {
    fail(dlerror());
  }
  std::uint32_t width = 0;
  while (try_read(width)) {
    NvDsInferNetworkInfo network{width, read<std::uint32_t>(), 3};
    NvDsInferParseDetectionParams parameters;
    parameters.numClassesConfigured = read<std::uint32_t>();
    parameters.perClassPreclusterThreshold.resize(read<std::uint32_t>());
    for (float& threshold : parameters.perClassPreclusterThreshold) {
      threshold = read<float>();
    }
    std::vector<NvDsInferLayerInfo> layers(read<std::uint32_t>());
    std::vector<std::unique_ptr<std::string>> names;
    std::vector<std::unique_ptr<unsigned char[]>> buffers;
    for (NvDsInferLayerInfo& layer : layers) {
      names.push_back(std::make_unique<std::string>(read<std::uint32_t>(), '\0'));
      if (!names.back()->empty() && std::fread(&(*names.back())[0], names.back()->size(), 1, stdin) != 1) {
        fail("a name ends too early");
      }
      layer.layerName = names.back()->empty() ? nullptr : names.back()->c_str();
      layer.dataType = static_cast<NvDsInferDataType>(read<std::uint32_t>());
      layer.inferDims = {};
      layer.inferDims.numDims = read<std::uint32_t>();
      layer.inferDims.numElements = 1;
      for (unsigned int axis = 0; axis < layer.inferDims.numDims; ++axis) {
        layer.inferDims.d[axis] = read<std::uint32_t>();
        layer.inferDims.numElements *= layer.inferDims.d[axis];
      }
      const bool given = read<std::uint32_t>() != 0;
      const auto bytes = read<std::uint64_t>();
      buffers.emplace_back(new unsigned char[bytes]);
      if (bytes != 0 && std::fread(buffers.back().get(), bytes, 1, stdin) != 1) {
        fail("a buffer ends too early");
      }
      layer.buffer = given ? buffers.back().get() : nullptr;
      layer.bindingIndex = static_cast<int>(buffers.size());
      layer.isInput = 0;
    }
    std::vector<NvDsInferObjectDetectionInfo> objects;
    const bool understood = parse(layers, network, parameters, objects);
    write<std::uint32_t>(understood ? 1 : 0);
    write<std::uint32_t>(static_cast<std::uint32_t>(objects.size()));
    for (const NvDsInferObjectDetectionInfo& object : objects) {
      write<std::uint32_t>(object.classId);
      for (float value : {object.left, object.top, object.width, object.height, object.detectionConfidence}) {
        write<float>(value);
      }
#ifdef BEFORE_ROTATION
      write<float>(0.0F);
#else
      write<float>(object.rotation_angle);
#endif
    }
  }
  return 0;
}
