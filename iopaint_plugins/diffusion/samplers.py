"""The samplers as schedulers of diffusers, as IOPaint maps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iopaint_plugins.diffusion.parameters import Sampler

if TYPE_CHECKING:
    from collections.abc import Mapping

_KARRAS = {"use_karras_sigmas": True}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_SCHEDULERS: Mapping[Sampler, tuple[str, Mapping[str, object]]] = {
    Sampler.DPM_2M: ("DPMSolverMultistepScheduler", {}),
    Sampler.DPM_2M_KARRAS: ("DPMSolverMultistepScheduler", _KARRAS),
    Sampler.DPM_2M_SDE: ("DPMSolverMultistepScheduler", _SDE),
    Sampler.DPM_2M_SDE_KARRAS: ("DPMSolverMultistepScheduler", {**_SDE, **_KARRAS}),
    Sampler.DPM_SDE: ("DPMSolverSinglestepScheduler", {}),
    Sampler.DPM_SDE_KARRAS: ("DPMSolverSinglestepScheduler", _KARRAS),
    Sampler.DPM2: ("KDPM2DiscreteScheduler", {}),
    Sampler.DPM2_KARRAS: ("KDPM2DiscreteScheduler", _KARRAS),
    Sampler.DPM2_A: ("KDPM2AncestralDiscreteScheduler", {}),
    Sampler.DPM2_A_KARRAS: ("KDPM2AncestralDiscreteScheduler", _KARRAS),
    Sampler.EULER: ("EulerDiscreteScheduler", {}),
    Sampler.EULER_A: ("EulerAncestralDiscreteScheduler", {}),
    Sampler.HEUN: ("HeunDiscreteScheduler", {}),
    Sampler.LMS: ("LMSDiscreteScheduler", {}),
    Sampler.LMS_KARRAS: ("LMSDiscreteScheduler", _KARRAS),
    Sampler.DDIM: ("DDIMScheduler", {}),
    Sampler.PNDM: ("PNDMScheduler", {}),
    Sampler.UNIPC: ("UniPCMultistepScheduler", {}),
    Sampler.LCM: ("LCMScheduler", {}),
}


def scheduler_for(sampler: Sampler, config: Mapping[str, Any]) -> Any:  # noqa: ANN401 - schedulers have no base type
    """A new scheduler of that kind for a model whose own scheduler has that config."""
    import diffusers

    name, options = _SCHEDULERS[sampler]
    kept = {key: value for key, value in config.items() if key not in {"use_karras_sigmas", "algorithm_type"}}
    return getattr(diffusers, name).from_config(kept, **options)
