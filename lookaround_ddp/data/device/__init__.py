"""Images and augmentations of whole batches on the device that trains."""

from lookaround_ddp.data.device.batches import DeviceIterations, batched, one_thread, pixels, resolved

__all__ = ["DeviceIterations", "batched", "one_thread", "pixels", "resolved"]
