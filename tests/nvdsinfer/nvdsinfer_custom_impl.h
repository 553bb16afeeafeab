/* The few types of DeepStream's nvdsinfer.h and nvdsinfer_custom_impl.h that a parser of boxes uses, so that it compiles where DeepStream is
 * not installed. Fields, their order and their types are those of NVIDIA/DeepStream 9.1 (includes/), which is what two libraries have to agree
 * on. With BEFORE_ROTATION defined they are those of the versions before 9.0.
 */

#ifndef TESTS_NVDSINFER_CUSTOM_IMPL_H
#define TESTS_NVDSINFER_CUSTOM_IMPL_H

#include <vector>

typedef enum { FLOAT = 0, HALF = 1, INT8 = 2, INT32 = 3, INT64 = 4, UINT8 = 5 } NvDsInferDataType;

typedef struct {
  unsigned int numDims;
  unsigned int d[8];
  unsigned int numElements;
} NvDsInferDims;

typedef struct {
  NvDsInferDataType dataType;
  NvDsInferDims inferDims;
  int bindingIndex;
  const char* layerName;
  void* buffer;
  int isInput;
} NvDsInferLayerInfo;

typedef struct {
  unsigned int width;
  unsigned int height;
  unsigned int channels;
} NvDsInferNetworkInfo;

typedef struct {
  unsigned int classId;
  float left;
  float top;
  float width;
  float height;
  float detectionConfidence;
#ifndef BEFORE_ROTATION
  float rotation_angle;
#endif
} NvDsInferObjectDetectionInfo;

typedef struct {
  unsigned int numClassesConfigured;
  std::vector<float> perClassPreclusterThreshold;
  std::vector<float> perClassPostclusterThreshold;
  std::vector<float>& perClassThreshold = perClassPreclusterThreshold;
} NvDsInferParseDetectionParams;

extern "C" typedef bool (*NvDsInferParseCustomFunc)(std::vector<NvDsInferLayerInfo> const& outputLayersInfo,
                                                    NvDsInferNetworkInfo const& networkInfo,
                                                    NvDsInferParseDetectionParams const& detectionParams,
                                                    std::vector<NvDsInferObjectDetectionInfo>& objectList);

/* Fails to compile where a function has another type. */
#define CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(function) \
  static void check_##function(NvDsInferParseCustomFunc given = function) { check_##function(); }

#endif
