"""vLLM's NCCL engine, for trainers that connect again."""

from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine


class RejoiningNCCLEngine(NCCLWeightTransferEngine):
    """Worker side of `nccl`. An engine that lived on when another was replaced connects anew.

    vLLM would forget the communicator of before and leave its buffers on the GPU.
    """

    def init_transfer_engine(self, init_info: NCCLWeightTransferInitInfo) -> None:
        self.shutdown()
        super().init_transfer_engine(init_info)
