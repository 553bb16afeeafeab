/* Turns the outputs of an edge_effdet engine into the objects of DeepStream's nvinfer: thresholds, clipping and suppression within each
 * class, as edge_effdet's own runtime does them, operation by operation in float32. So nvinfer itself must not cluster (cluster-mode=4).
 *
 * The interface is that of nvdsinfer_custom_impl.h, which comes with DeepStream (NVIDIA/DeepStream, includes/). What nvinfer does with the
 * objects was read in src/utils/nvdsinfer/nvdsinfer_context_impl_output_parsing.cpp and src/gst-plugins/gst-nvinfer/gstnvinfer_meta_utils.cpp
 * there, version 9.1.
 */

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "nvdsinfer_custom_impl.h"

/* Width and height of the frames that nvstreammux gives, in pixels. nvinfer tells a parser only the size of the network's input, and boxes
 * have to be clipped to the part of it that the picture fills. 0 where the size is not known: then they are clipped to the whole input. */
#ifndef FRAME_WIDTH
#define FRAME_WIDTH 0
#endif
#ifndef FRAME_HEIGHT
#define FRAME_HEIGHT 0
#endif

namespace {

/* A box is dropped when its IoU with a better box of its class is above this. */
constexpr float kIouThreshold = 0.5F;
/* The most objects of a frame, over all classes. */
constexpr std::size_t kMostDetections = 100;
/* A sigmoid is at most 1; a runtime may round it up in its last place. */
constexpr float kHighestScore = 1.001F;

struct Candidate {
  float left, top, right, bottom, area, score;
  unsigned int class_id;
};

/* The outputs of one frame, with `count` candidates each. */
struct Outputs {
  const float* boxes;  /* [count, 4], x_min y_min x_max y_max in pixels of the network's input */
  const float* scores; /* [count] */
  const std::int32_t* class_ids; /* [count] */
  std::size_t count;
};

/* Frames come many times a second, so that each kind of fault is told once. */
void tell_once(std::atomic_flag& told, const char* what) {
  if (!told.test_and_set()) {
    std::fprintf(stderr, "edge_effdet: %s\n", what);
  }
}

const NvDsInferLayerInfo* find_layer(const std::vector<NvDsInferLayerInfo>& layers, const char* name, NvDsInferDataType type,
                                     unsigned int dimensions) {
  for (const NvDsInferLayerInfo& layer : layers) {
    if (layer.layerName != nullptr && std::strcmp(layer.layerName, name) == 0) {
      const bool fits = layer.dataType == type && layer.inferDims.numDims == dimensions && layer.buffer != nullptr;
      return fits ? &layer : nullptr;
    }
  }
  return nullptr;
}

bool read_outputs(const std::vector<NvDsInferLayerInfo>& layers, Outputs& outputs) {
  const NvDsInferLayerInfo* boxes = find_layer(layers, "boxes", FLOAT, 2);
  const NvDsInferLayerInfo* scores = find_layer(layers, "scores", FLOAT, 1);
  const NvDsInferLayerInfo* class_ids = find_layer(layers, "class_ids", INT32, 1);
  if (boxes == nullptr || scores == nullptr || class_ids == nullptr) {
    return false;
  }
  const unsigned int count = scores->inferDims.d[0];
  if (boxes->inferDims.d[0] != count || boxes->inferDims.d[1] != 4 || class_ids->inferDims.d[0] != count) {
    return false;
  }
  outputs = {static_cast<const float*>(boxes->buffer), static_cast<const float*>(scores->buffer),
             static_cast<const std::int32_t*>(class_ids->buffer), count};
  return true;
}

/* Whether all numbers are such as a detector gives, whatever its thresholds. A comparison with NaN is false. */
bool are_sane(const Outputs& outputs) {
  return std::all_of(outputs.boxes, outputs.boxes + 4 * outputs.count, [](float value) { return std::isfinite(value); }) &&
         std::all_of(outputs.scores, outputs.scores + outputs.count, [](float score) { return score <= kHighestScore; });
}

/* Right and bottom edge of the picture in the network's input, with the roundings of runtime/postprocess.py. */
void picture_bounds(const NvDsInferNetworkInfo& network, float& right, float& bottom) {
  right = static_cast<float>(network.width);
  bottom = static_cast<float>(network.height);
  if (FRAME_WIDTH > 0 && FRAME_HEIGHT > 0) {
    const double width = FRAME_WIDTH, height = FRAME_HEIGHT;
    const float scale = static_cast<float>(std::min(network.height / height, network.width / width));
    right = static_cast<float>(width) * scale;
    bottom = static_cast<float>(height) * scale;
  }
}

float clip(float value, float most) { return std::min(std::max(value, 0.0F), most); }

/* As runtime/nms.py has it; 0 where the union is empty. */
float overlap(const Candidate& first, const Candidate& second) {
  const float width = std::max(std::min(first.right, second.right) - std::max(first.left, second.left), 0.0F);
  const float height = std::max(std::min(first.bottom, second.bottom) - std::max(first.top, second.top), 0.0F);
  const float both = width * height;
  const float either = (first.area + second.area) - both;
  return either > 0.0F ? both / either : both;
}

/* Gathers the candidates above the threshold of their class, by descending score; equal scores keep their order. False where one of them has no
 * class or an inverted box. */
bool read_candidates(const Outputs& outputs, const NvDsInferNetworkInfo& network, const NvDsInferParseDetectionParams& parameters,
                     std::vector<Candidate>& candidates) {
  const std::vector<float>& thresholds = parameters.perClassPreclusterThreshold;
  if (parameters.numClassesConfigured == 0) {
    return true;
  }
  const float lowest = *std::min_element(thresholds.begin(), thresholds.begin() + parameters.numClassesConfigured);
  float right = 0, bottom = 0;
  picture_bounds(network, right, bottom);
  for (std::size_t index = 0; index < outputs.count; ++index) {
    const std::int32_t class_id = outputs.class_ids[index];
    const float score = outputs.scores[index];
    /* nvinfer may be told of fewer classes than the network has, and would drop the others later. A row that is left empty may have no class. */
    if (class_id >= 0 && static_cast<unsigned int>(class_id) >= parameters.numClassesConfigured) {
      continue;
    }
    if (score < (class_id < 0 ? lowest : thresholds[static_cast<std::size_t>(class_id)])) {
      continue;
    }
    const float* box = outputs.boxes + 4 * index;
    if (class_id < 0 || box[2] < box[0] || box[3] < box[1]) {
      return false;
    }
    Candidate found{clip(box[0], right), clip(box[1], bottom), clip(box[2], right), clip(box[3], bottom), 0.0F, score,
                    static_cast<unsigned int>(class_id)};
    found.area = std::max(found.right - found.left, 0.0F) * std::max(found.bottom - found.top, 0.0F);
    candidates.push_back(found);
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& first, const Candidate& second) { return first.score > second.score; });
  return true;
}

std::vector<Candidate> suppress_overlaps(const std::vector<Candidate>& candidates) {
  std::vector<Candidate> kept;
  for (const Candidate& candidate : candidates) {
    if (kept.size() == kMostDetections) {
      break;
    }
    const bool suppressed = std::any_of(kept.begin(), kept.end(), [&candidate](const Candidate& better) {
      return better.class_id == candidate.class_id && overlap(better, candidate) > kIouThreshold;
    });
    if (!suppressed) {
      kept.push_back(candidate);
    }
  }
  return kept;
}

}  // namespace

/* The function that parse-bbox-func-name names.
 *
 * Objects are in pixels of the network's input, as nvinfer wants them. A box without an area is not given: what comes after nvinfer does
 * not expect one.
 *
 * Returns false where the outputs are not those of an edge_effdet engine. Where its numbers cannot be, such as NaN, a score above 1 or an
 * inverted box, the engine is broken: then the frame has no object, and a message says so. That is not false, for after false nvinfer 9.1
 * goes on with a list of objects that it never filled. */
extern "C" bool NvDsInferParseEffDet(std::vector<NvDsInferLayerInfo> const& outputLayersInfo, NvDsInferNetworkInfo const& networkInfo,
                                     NvDsInferParseDetectionParams const& detectionParams,
                                     std::vector<NvDsInferObjectDetectionInfo>& objectList) {
  static std::atomic_flag told_outputs = ATOMIC_FLAG_INIT, told_parameters = ATOMIC_FLAG_INIT, told_numbers = ATOMIC_FLAG_INIT;
  Outputs outputs{};
  if (!read_outputs(outputLayersInfo, outputs)) {
    tell_once(told_outputs, "the engine has other outputs than boxes [K, 4] and scores [K] of FP32 and class_ids [K] of INT32; build it from the "
                            "ONNX file in this folder.");
    return false;
  }
  if (networkInfo.width == 0 || networkInfo.height == 0 ||
      detectionParams.perClassPreclusterThreshold.size() < detectionParams.numClassesConfigured) {
    tell_once(told_parameters, "nvinfer gives no input size, or fewer thresholds than classes; use config_infer_primary.txt of this folder.");
    return false;
  }
  std::vector<Candidate> candidates;
  if (!are_sane(outputs) || !read_candidates(outputs, networkInfo, detectionParams, candidates)) {
    tell_once(told_numbers, "the engine returned numbers that are no boxes, so the frame has no objects; build the engine again.");
    return true;
  }
  for (const Candidate& found : suppress_overlaps(candidates)) {
    if (found.right <= found.left || found.bottom <= found.top) {
      continue;
    }
    /* From DeepStream 9.0 on there is a rotation too, which has to be 0. */
    NvDsInferObjectDetectionInfo object{};
    object.classId = found.class_id;
    object.left = found.left;
    object.top = found.top;
    object.width = found.right - found.left;
    object.height = found.bottom - found.top;
    object.detectionConfidence = found.score;
    objectList.push_back(object);
  }
  return true;
}

/* NVIDIA's check of the function's type. It is a function that nobody calls. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpragmas"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Winfinite-recursion"
CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(NvDsInferParseEffDet)
#pragma GCC diagnostic pop
