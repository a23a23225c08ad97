"""Results: what comes out is what the inline executor gives for the same seed."""

from __future__ import annotations

from typing import Any

import pytest

from omni_core import OmniDiffusionRequest
from omni_core.testing.base import ConformanceBase
from omni_core.testing.families import FAMILIES, model_of
from omni_core.testing.reference import as_array, assert_same_output


class Results(ConformanceBase):
    """Results."""

    theme = "results"

    @pytest.mark.parametrize("family", list(FAMILIES))
    def test_equal_to_inline(self, family: str) -> None:
        """Pictures, video and sound of stock pipelines are those of the inline executor, seed by seed."""
        case = FAMILIES[family]
        requests = [OmniDiffusionRequest(**case.arguments(), seed=seed) for seed in (0, 7)]
        outputs = self.step(self.engine(model=model_of(family)), *requests)
        for request, output in zip(requests, outputs, strict=True):
            assert_same_output(output, self.expected(request, model_of(family)), case.output)

    def test_equal_to_the_bare_pipeline(self) -> None:
        """The picture is that of the pipeline called by hand with a generator of the same seed."""
        import torch

        from omni_core.testing.pipelines import picture

        request = self.request(seed=3)
        config = self.make_config()
        pipeline = picture().to(config.device)
        bare = pipeline(
            prompt=request.prompt,
            height=32,
            width=32,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            max_sequence_length=16,
            output_type="np",
            generator=torch.Generator(config.device).manual_seed(3),
        )
        [output] = self.step(self.shared_engine(), request)
        assert_same_output(output, {"images": bare.images})

    def test_in_company_as_alone(self) -> None:
        """Requests of other seeds, steps, sizes and guidance in the same batch change nothing."""
        requests = [
            self.request(seed=1),
            self.request(seed=2, num_inference_steps=9),
            self.request(seed=3, height=16, width=48),
            self.request(seed=4, guidance_scale=1.0),
            self.request(seed=5, prompt="a blue two", negative_prompt="red"),
            self.request(seed=6, num_outputs_per_prompt=2),
        ]
        for request, output in zip(requests, self.step(self.shared_engine(), *requests), strict=True):
            self.assert_right(output, request)

    @pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
    def test_forms_of_output(self, output_type: str) -> None:
        """Pictures, arrays, tensors and latents arrive as what they are."""
        request = self.request(output_type=output_type)
        [output] = self.step(self.shared_engine(), request)
        tolerance = 1.01 / 255 if output_type == "pil" else 1e-4
        expected = self.expected(request)
        assert_same_output(output, expected, tolerance=tolerance)
        found, wanted = output.output["images"], expected["images"]
        assert type(found) is type(wanted)
        assert type(output.images[0]) is type(wanted[0])
        kind = "mode" if output_type == "pil" else "dtype"
        assert getattr(output.images[0], kind) == getattr(wanted[0], kind)

    def test_several_outputs_of_one_prompt(self) -> None:
        """One request for three pictures gives three, and they differ."""
        request = self.request(num_outputs_per_prompt=3)
        [output] = self.step(self.shared_engine(), request)
        self.assert_right(output, request)
        assert len(output.images) == 3
        assert (output.images[0] != output.images[1]).any()

    def test_order_of_outputs(self) -> None:
        """Outputs are in the order of the requests, whatever order they end in."""
        requests = [self.request(seed=steps, num_inference_steps=steps) for steps in (12, 1, 7, 2)]
        outputs = self.step(self.shared_engine(), *requests)
        assert [output.request_id for output in outputs] == [request.request_id for request in requests]
        for request, output in zip(requests, outputs, strict=True):
            self.assert_right(output, request)

    def test_more_requests_than_places(self) -> None:
        """Thirty requests for one place all get their own picture."""
        requests = [self.request(seed=seed % 5) for seed in range(30)]
        outputs = self.step(self.narrow_engine(), *requests)
        for request, output in zip(requests, outputs, strict=True):
            self.assert_right(output, request)

    def test_no_requests(self) -> None:
        """An empty list gives an empty list."""
        assert self.shared_engine().step([], timeout=10.0) == []

    def test_seeds(self) -> None:
        """The same seed gives the same picture, another one another, and a seed that was chosen is reported."""
        engine = self.shared_engine()
        fields = self.request().model_dump(exclude={"seed", "request_id"}, exclude_none=True)
        [chosen] = self.step(engine, OmniDiffusionRequest(**fields))
        again, other = self.step(
            engine, OmniDiffusionRequest(**fields, seed=chosen.seed), self.request(seed=chosen.seed ^ 1)
        )
        assert_same_output(again, chosen.raise_for_error().output)
        assert abs(as_array(other.output["images"]) - as_array(chosen.output["images"])).max() > 1e-3

    def test_a_picture_in_the_request(self) -> None:
        """A large array among the arguments reaches the pipeline unchanged."""
        import torch

        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
        requests = [self.request(extra_args={"latents": scale * latents}) for scale in (1.0, 0.5)]
        outputs = self.step(self.shared_engine(), *requests)
        for request, output in zip(requests, outputs, strict=True):
            assert_same_output(output, self.expected(request))

    def test_execute_model(self) -> None:
        """The executor's own `execute_model` gives one output per request, in order, and a failure stays alone."""
        from omni_core.testing.injection import fault

        requests = [self.request(seed=1), self.request(fault=fault("raise")), self.request(seed=2)]
        outputs = self.shared_engine().executor.execute_model(requests)
        assert [output.request_id for output in outputs] == [request.request_id for request in requests]
        assert [output.finish_reason for output in outputs] == ["finished", "error", "finished"]
        self.assert_right(outputs[0], requests[0])
        self.assert_right(outputs[2], requests[2])

    def test_metrics(self) -> None:
        """The output tells its seed, steps and times."""
        [output] = self.step(self.shared_engine(), self.request(seed=8, num_inference_steps=6))
        metrics = output.raise_for_error().metrics
        assert output.seed == 8
        assert min(metrics.queue_s, metrics.encode_s, metrics.denoise_s, metrics.decode_s) >= 0
        if self.executor_type.runs_diffusion_worker:
            assert metrics.num_steps == 6
            assert metrics.denoise_s > 0

    def test_bfloat16(self) -> None:
        """Latents of a pipeline in bfloat16 arrive in bfloat16, equal to the inline executor's."""
        import torch

        request = self.request(output_type="latent")
        [output] = self.step(self.engine(dtype="bfloat16"), request)
        expected = self.expected(request, dtype="bfloat16")
        assert output.raise_for_error().output["images"].dtype == torch.bfloat16
        assert_same_output(output, expected, tolerance=0.05)

    @pytest.mark.parametrize("option", ["data_parallel_size", "cfg_parallel_size"])
    def test_two_workers(self, option: str) -> None:
        """Two replicas, or two ranks of one, give the same pictures as one worker."""
        self.need_option(option)
        engine = self.engine(**{option: 2})
        requests = [self.request(seed=seed) for seed in range(8)]
        for request, output in zip(requests, self.step(engine, *requests), strict=True):
            self.assert_right(output, request)
        whole: Any = engine.collective_rpc("describe_pipeline") if self.executor_type.runs_diffusion_worker else [0, 0]
        assert len(whole) == 2
