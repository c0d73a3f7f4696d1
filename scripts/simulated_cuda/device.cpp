// A CUDA device whose memory is the host's and whose kernels are the CPU's. See __main__.py.
//
// Operators that have no kernel of their own for CUDA fall back to `run_on_host`: each CUDA tensor is shown to the
// CPU's kernel as a host tensor on the same memory, and results become CUDA tensors again. As on a GPU, an operator
// that is given tensors, or a generator, of another device fails.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/NativeFunctions.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include <set>
#include <string>

namespace {

using at::Tensor;
constexpr auto CUDA = c10::DeviceType::CUDA;
constexpr c10::DeviceIndex DEVICES = 2;
thread_local c10::DeviceIndex current_index = 0;
std::set<std::string> seen;

struct Guard final : public c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return CUDA; }
  c10::Device exchangeDevice(c10::Device device) const override {
    c10::Device before(CUDA, current_index);
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override { return c10::Device(CUDA, current_index); }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() < DEVICES, "CUDA error: invalid device ordinal");
    if (device.has_index()) current_index = device.index();
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.has_index()) current_index = device.index();
  }
  c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream getNewStream(c10::Device device, int) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return DEVICES; }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

struct CUDAHooks final : public at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return DEVICES; }
  int getNumGPUs() const override { return DEVICES; }
  c10::DeviceIndex current_device() const override { return current_index; }
  c10::DeviceIndex getCurrentDevice() const override { return current_index; }
  void setCurrentDevice(c10::DeviceIndex index) const override { current_index = index; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override { return std::exchange(current_index, index); }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override { return exchangeDevice(index); }
  void deviceSynchronize(c10::DeviceIndex) const override {}
  const at::Generator& getDefaultGenerator(c10::DeviceIndex = -1) const override {
    return at::detail::getDefaultCPUGenerator();
  }
};
using at::CUDAHooksRegistry;
using at::CUDAHooksArgs;
using at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks);

// Another tensor on the memory of `tensor`, on another device; it keeps the memory alive.
Tensor seen_from(const Tensor& tensor, c10::Device device) {
  auto storage = tensor.storage();
  auto* owner = new c10::Storage(storage);
  c10::DataPtr data(
      storage.mutable_data(), owner, [](void* context) { delete static_cast<c10::Storage*>(context); }, device);
  c10::Storage other(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data), nullptr, false);
  c10::DispatchKeySet keys(device.type() == CUDA ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU);
  auto result = at::detail::make_tensor<c10::TensorImpl>(std::move(other), keys, tensor.dtype());
  result.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.is_conj()) result.unsafeGetTensorImpl()->_set_conj(true);
  if (tensor.is_neg()) result.unsafeGetTensorImpl()->_set_neg(true);
  return result;
}

c10::Device current() { return c10::Device(CUDA, current_index); }

// What CUDA's operators take from the host: numbers without dimensions, indices, lengths.
bool takes_host_tensors(const std::string& name) {
  static const std::set<std::string> names = {
      "aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put", "aten::tensor_split",
      "aten::_pin_memory", "aten::is_pinned"};
  return names.count(name) > 0;
}

void run_on_host(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const std::string name = schema.name();
  seen.insert(name);
  const auto count = schema.arguments().size();
  auto arguments = torch::jit::last(*stack, count).vec();
  std::optional<c10::Device> device;
  auto check = [&](const Tensor& tensor, const std::string& argument) {
    if (!tensor.defined()) return;
    if (tensor.is_cuda()) {
      TORCH_CHECK(!device || *device == tensor.device() || tensor.dim() == 0,
          "Expected all tensors to be on the same device, but found ", *device, " and ", tensor.device(), " in ", name);
      if (!device || tensor.dim() > 0) device = tensor.device();
    }
  };
  auto check_host = [&](const Tensor& tensor, const std::string& argument) {
    if (!tensor.defined() || tensor.is_cuda() || takes_host_tensors(name)) return;
    TORCH_CHECK(tensor.dim() == 0, "Expected all tensors to be on the same device, but found ",
        device ? c10::str(*device) : "cuda", " and ", tensor.device(), " (argument ", argument, ") in ", name);
  };
  for (int pass = 0; pass < 2; ++pass) {
    for (size_t i = 0; i < count; ++i) {
      const auto& argument = schema.arguments()[i].name();
      auto apply = [&](const Tensor& tensor) { pass ? check_host(tensor, argument) : check(tensor, argument); };
      if (arguments[i].isTensor()) apply(arguments[i].toTensor());
      else if (arguments[i].isTensorList()) for (const Tensor& each : arguments[i].toTensorVector()) apply(each);
      else if (arguments[i].isList()) {
        for (const auto& each : arguments[i].toListRef()) if (each.isTensor()) apply(each.toTensor());
      }
    }
  }
  const c10::Device target = device.value_or(current());
  auto to_host = [](const Tensor& tensor) {
    return tensor.defined() && tensor.is_cuda() ? seen_from(tensor, c10::kCPU) : tensor;
  };
  std::vector<Tensor> hosts(count);
  for (size_t i = 0; i < count; ++i) {
    c10::IValue value = arguments[i];
    if (value.isTensor()) {
      const Tensor& tensor = value.toTensor();
      const auto* alias = schema.arguments()[i].alias_info();
      const bool is_output = alias && alias->isWrite() && tensor.defined() && tensor.is_cuda() && tensor.numel() == 0;
      hosts[i] = is_output ? at::empty(tensor.sizes(), tensor.options().device(c10::kCPU)) : to_host(tensor);
      value = hosts[i];
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& each : value.toTensorVector()) list.push_back(to_host(each));
      value = list;
    } else if (value.isList() && value.toList().elementType()->kind() == c10::TypeKind::OptionalType) {
      c10::List<std::optional<Tensor>> list;
      for (const auto& each : value.toListRef()) {
        list.push_back(each.isNone() ? std::optional<Tensor>() : std::optional<Tensor>(to_host(each.toTensor())));
      }
      value = list;
    } else if (value.isDevice()) {
      value = c10::Device(c10::kCPU);
    } else if (value.isGenerator()) {
      TORCH_CHECK(value.toGenerator().device().type() == CUDA,
          "Expected a 'cuda' device type for generator but found 'cpu' in ", name);
    }
    (*stack)[stack->size() - count + i] = value;
  }
  {
    c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    op.callBoxed(stack);
  }
  const auto returns = schema.returns().size();
  auto to_device = [&](const Tensor& tensor, const c10::AliasInfo* alias) -> Tensor {
    if (!tensor.defined() || tensor.is_cuda()) return tensor;
    if (alias && alias->isWrite()) {
      for (size_t i = 0; i < count; ++i) {
        const auto* own = schema.arguments()[i].alias_info();
        if (own && own->isWrite() && own->beforeSets() == alias->beforeSets()) {
          const Tensor& original = arguments[i].toTensor();
          if (original.is_cuda() && original.sizes() != hosts[i].sizes()) {  // an output that was given empty
            auto* own = original.unsafeGetTensorImpl();
            own->set_storage_keep_dtype(seen_from(hosts[i], original.device()).storage());
            own->set_sizes_and_strides(hosts[i].sizes(), hosts[i].strides(), hosts[i].storage_offset());
          }
          return original;
        }
      }
    }
    return seen_from(tensor, target);
  };
  for (size_t i = 0; i < returns; ++i) {
    auto& value = (*stack)[stack->size() - returns + i];
    if (value.isTensor()) {
      value = to_device(value.toTensor(), schema.returns()[i].alias_info());
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& each : value.toTensorVector()) list.push_back(to_device(each, nullptr));
      value = list;
    }
  }
}

Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
    std::optional<c10::Device> device, std::optional<bool> pin, std::optional<at::MemoryFormat> format) {
  auto host = at::empty(C10_AS_INTARRAYREF_SLOW(size), at::TensorOptions().dtype(dtype), format);
  return seen_from(host, device && device->has_index() ? *device : current());
}

Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
    std::optional<at::Layout> layout, std::optional<c10::Device> device, std::optional<bool> pin) {
  auto host = at::empty_strided(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), at::TensorOptions().dtype(dtype));
  return seen_from(host, device && device->has_index() ? *device : current());
}

Tensor& copy_(Tensor& self, const Tensor& source, bool) {
  auto host = self.is_cuda() ? seen_from(self, c10::kCPU) : self;
  host.copy_(source.is_cuda() ? seen_from(source, c10::kCPU) : source);
  return self;
}

Tensor as_strided(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
    std::optional<c10::SymInt> offset) {
  auto start = offset ? std::optional<int64_t>(offset->guard_int(__FILE__, __LINE__)) : std::nullopt;
  return at::native::as_strided_tensorimpl(
      self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), start);
}

Tensor view(const Tensor& self, c10::SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

Tensor unfold(const Tensor& self, int64_t dimension, int64_t size, int64_t step) {
  return at::native::unfold(self, dimension, size, step);
}

Tensor reshape_alias(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

Tensor view_as_real(const Tensor& self) { return at::native::view_as_real(self); }
Tensor view_as_complex(const Tensor& self) { return at::native::view_as_complex(self); }
Tensor view_dtype(const Tensor& self, at::ScalarType dtype) { return at::native::view_dtype(self, dtype); }

c10::Scalar local_scalar_dense(const Tensor& self) { return seen_from(self, c10::kCPU).item(); }

const Tensor& resize_(const Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat>) {
  auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  if (self.sizes() == sizes) return self;
  auto host = at::empty(sizes, self.options().device(c10::kCPU));
  auto moved = seen_from(host, self.device());
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(moved.storage());
  self.unsafeGetTensorImpl()->set_sizes_and_strides(moved.sizes(), moved.strides(), 0);
  return self;
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", TORCH_FN(empty));
  library.impl("empty_strided", TORCH_FN(empty_strided));
  library.impl("copy_", TORCH_FN(copy_));
  library.impl("as_strided", TORCH_FN(as_strided));
  library.impl("view", TORCH_FN(view));
  library.impl("view.dtype", TORCH_FN(view_dtype));
  library.impl("unfold", TORCH_FN(unfold));
  library.impl("_reshape_alias", TORCH_FN(reshape_alias));
  library.impl("view_as_real", TORCH_FN(view_as_real));
  library.impl("view_as_complex", TORCH_FN(view_as_complex));
  library.impl("_local_scalar_dense", TORCH_FN(local_scalar_dense));
  library.impl("resize_", TORCH_FN(resize_));
}

TORCH_LIBRARY_IMPL(_, CUDA, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>()); }

}  // namespace

extern "C" {
int simulated_cuda_device() { return current_index; }
void simulated_cuda_set_device(int index) {
  current_index = static_cast<c10::DeviceIndex>(index);
}
}
