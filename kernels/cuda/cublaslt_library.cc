#include <dlfcn.h>

#include <cstdlib>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cublaslt_api.h"

namespace phalanx::cuda::lt {
namespace {

constexpr const char* kLibrary = "libcublasLt.so.13";

template <typename Function>
bool Find(void* library, const char* name, Function* function, std::string* missing) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  if (*function == nullptr) *missing = name;
  return *function != nullptr;
}

}  // namespace

std::string VersionName(size_t version) {
  return absl::StrCat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

absl::StatusOr<Table> OpenLibrary() {
  std::vector<std::string> paths = {kLibrary};
  if (const char* home = std::getenv("CUDA_HOME"); home != nullptr && home[0] != '\0') {
    paths.push_back(absl::StrCat(home, "/lib64/", kLibrary));
  }
  paths.push_back(absl::StrCat("/usr/local/cuda/lib64/", kLibrary));
  void* library = nullptr;
  std::string error;
  for (const std::string& path : paths) {
    library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) break;
    if (error.empty()) error = dlerror();
  }
  if (library == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("mode fast needs cuBLASLt, and ", kLibrary,
                     " cannot be opened (NVIDIA's package libcublas-13-0 has it; $CUDA_HOME/lib64 and "
                     "/usr/local/cuda/lib64 are looked in, too): ",
                     error, "; mode invariant runs without"));
  }
  Table t;
  std::string missing;
  const bool whole =
      Find(library, "cublasLtGetVersion", &t.GetVersion, &missing) &&
      Find(library, "cublasLtGetStatusString", &t.GetStatusString, &missing) &&
      Find(library, "cublasLtCreate", &t.Create, &missing) &&
      Find(library, "cublasLtDestroy", &t.Destroy, &missing) &&
      Find(library, "cublasLtMatmulDescCreate", &t.MatmulDescCreate, &missing) &&
      Find(library, "cublasLtMatmulDescDestroy", &t.MatmulDescDestroy, &missing) &&
      Find(library, "cublasLtMatmulDescSetAttribute", &t.MatmulDescSetAttribute, &missing) &&
      Find(library, "cublasLtMatrixLayoutCreate", &t.MatrixLayoutCreate, &missing) &&
      Find(library, "cublasLtMatrixLayoutDestroy", &t.MatrixLayoutDestroy, &missing) &&
      Find(library, "cublasLtMatmulPreferenceCreate", &t.MatmulPreferenceCreate, &missing) &&
      Find(library, "cublasLtMatmulPreferenceDestroy", &t.MatmulPreferenceDestroy, &missing) &&
      Find(library, "cublasLtMatmulPreferenceSetAttribute", &t.MatmulPreferenceSetAttribute, &missing) &&
      Find(library, "cublasLtMatmulAlgoGetHeuristic", &t.MatmulAlgoGetHeuristic, &missing) &&
      Find(library, "cublasLtMatmulAlgoCheck", &t.MatmulAlgoCheck, &missing) &&
      Find(library, "cublasLtMatmul", &t.Matmul, &missing);
  if (!whole) {
    dlclose(library);
    return absl::FailedPreconditionError(absl::StrCat(kLibrary, " has no function ", missing));
  }
  return t;
}

}  // namespace phalanx::cuda::lt
