"""What verl 0.9.1 lacks to run without an accelerator: a platform, and an engine that samples with transformers.

verl loads it where VERL_PLATFORM=cpu and VERL_USE_EXTERNAL_MODULES names it first. VERL_ENGINE_DEVICE=cuda chooses
verl's FSDP engine, which is registered for accelerators alone and runs as it is on the platform below.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import ray
import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

NOTHING = {name: lambda *_, **__: None for name in ("synchronize", "empty_cache", "set_device", "manual_seed")}
NO_MEMORY = {
    name: lambda *_: 0
    for name in ("max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved")
}


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """The processor as verl's accelerator. Ray is told of a GPU that nothing uses, as verl counts these."""

    device_name = "cpu"
    vendor_name = "none"
    device_module = SimpleNamespace(
        **NOTHING,
        **NO_MEMORY,
        mem_get_info=lambda *_: (0, 0),
        is_available=lambda: True,
        get_device_name=lambda *_: "CPU",
    )

    def is_available(self):
        return True

    def current_device(self):
        return "cpu"  # where verl moves tensors to

    def device_count(self):
        return 1

    def set_device(self, device_index):
        pass

    def synchronize(self, device_index=None):
        pass

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    def manual_seed_all(self, seed):
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings):
        pass

    def empty_cache(self):
        pass

    def get_device_capability(self, device_index=0):
        return None, None

    def communication_backend_name(self):
        return "gloo"

    def visible_devices_envvar(self):
        return "NO_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg):
        yield

    def profiler_start(self):
        pass

    def profiler_stop(self):
        pass

    def ray_resource_name(self):
        return "GPU"

    def ray_noset_envvars(self):
        return []

    def is_ipc_supported(self):
        return False

    def cudart(self):
        return None


# verl asks which platform there is while it imports what follows.
from transformers import AutoModelForCausalLM  # noqa: E402
from verl.utils.distributed import initialize_global_process_group_ray  # noqa: E402
from verl.workers.rollout.base import _ROLLOUT_REGISTRY, BaseRollout  # noqa: E402
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput  # noqa: E402

SERVER = "transformers_server_{rank}"


@ray.remote(num_cpus=0)
class Server:
    """Samples with transformers, one request at a time."""

    def __init__(self, path, response_length, rank):
        torch.manual_seed(rank)
        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.response_length, self.global_steps = response_length, None

    async def load(self, weights, global_steps):
        """Take over the policy's weights."""
        self.model.load_state_dict(weights)
        self.global_steps = global_steps

    async def generate(self, request_id, prompt_ids, sampling_params, **_):
        """Sample one completion, with the log-probability of each token under the policy."""
        assert sampling_params.get("temperature") in (1.0, 0) and sampling_params["top_p"] == 1.0
        greedy = sampling_params["temperature"] == 0
        room = sampling_params.get("max_tokens") or self.response_length
        with torch.no_grad():
            output = self.model.generate(
                torch.tensor([prompt_ids]),
                attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.int64),
                do_sample=not greedy,
                top_k=0,
                max_new_tokens=min(room, self.response_length),
                output_scores=True,
                return_dict_in_generate=True,
            )
        ids = output.sequences[0, len(prompt_ids) :]
        logprobs = torch.cat(output.scores).log_softmax(dim=-1)[torch.arange(len(ids)), ids]
        return TokenOutput(
            token_ids=ids.tolist(),
            log_probs=logprobs.tolist(),
            stop_reason="completed",
            extra_fields={"global_steps": self.global_steps},
        )

    async def sleep(self):
        pass

    async def wake_up(self):
        pass

    async def clear_kv_cache(self):
        pass


class Replica(RolloutReplica):
    """What verl's trainer knows of a server."""

    async def launch_servers(self):
        name = SERVER.format(rank=self.replica_rank)
        arguments = (self.model_config.path, self.config.response_length, self.replica_rank)
        self.servers = [Server.options(name=name).remote(*arguments)]
        self._server_handle, self._server_address = self.servers[0], name


class Sender(BaseRollout):
    """Takes the weights in the policy's process, and sends them to the servers."""

    async def resume(self, tags):
        pass

    async def release(self):
        pass

    async def update_weights(self, weights, wire_format="named_tensors", global_steps=None, **_):
        named = {name: tensor.detach().clone() for name, tensor in weights}
        if torch.distributed.get_rank() == 0:
            for rank in range(self.device_mesh.size(0)):
                await ray.get_actor(SERVER.format(rank=rank)).load.remote(named, global_steps)


initialize_global_process_group_ray.__defaults__ = (None, "cpu:gloo")  # verl names the processor twice, torch refuses
_ROLLOUT_REGISTRY["transformers", "async"] = f"{__name__}.{Sender.__name__}"
RolloutReplicaRegistry.register("transformers", lambda: sys.modules[__name__].Replica)
