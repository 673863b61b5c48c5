"""A device that runs late: on a CPU, the order of streams, events and pinned copies cannot be seen otherwise.

    streams      queues, whose work is carried out when the host waits for it, or as a policy has it
    memory       an allocator that poisons what is freed and hands it out again at once
    tensors      tensors that say `cuda:0`, and what operators do with them
    accelerator  the device as the package sees it, and how to put it in the place of CUDA
    reserved     planned memory against what is reserved, over the whole sweep of configurations

A wait that is missing shows as other bits, and whatever makes the host wait is counted with the line that did it. What
the device lacks: kernels of its own, derivatives by autograd, and a second device.
"""
