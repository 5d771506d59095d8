"""Prepared samples cross from the decode processes as they are, and leave no files behind."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from video_pipeline.decode.transport import pack, unpack


def there_and_back(value, folder):
    parcel = pack(value, folder)
    result = unpack(parcel)
    assert list(folder.iterdir()) == []
    return parcel, result


DTYPES = [
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    torch.float8_e4m3fn,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (1,), (), (0,), (0, 3)], ids=str)
def test_tensors_of_every_kind(tmp_path, dtype, shape):
    tensor = torch.arange(15).reshape(3, 5).to(dtype)
    tensor = tensor[0, 0] if shape == () else tensor.reshape(-1)[: int(np.prod(shape))]
    tensor = tensor.reshape(shape)
    _, result = there_and_back({"x": tensor}, tmp_path)
    assert result["x"].dtype == dtype
    assert result["x"].shape == tensor.shape
    wide = torch.complex128 if dtype.is_complex else torch.float64  # float8 knows no comparison
    assert torch.equal(result["x"].to(wide), tensor.to(wide))


LAYOUTS = {
    "transposed": lambda x: x.t(),
    "every other": lambda x: x[:, ::2],
    "expanded": lambda x: x[:1].expand(4, -1),
    "with an offset": lambda x: x[2:],
    "channels last": lambda x: x.reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "needs a gradient": lambda x: x.float().requires_grad_(),
    "negated lazily": lambda x: torch.view_as_complex(x.float().reshape(3, 4, 2)).conj().imag,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_that_do_not_lie_in_a_row(tmp_path, layout):
    tensor = LAYOUTS[layout](torch.arange(24).reshape(4, 6))
    _, result = there_and_back(tensor, tmp_path)
    assert torch.equal(result, tensor.detach())


ARRAYS = {
    "plain": np.arange(12).reshape(3, 4),
    "by columns": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "every other": np.arange(12).reshape(3, 4)[:, ::2],
    "empty": np.zeros((0, 4)),
    "no dimension": np.array(3.5),
    "texts": np.array(["a", "bc"]),
    "objects": np.array([{"a": 1}, None], dtype=object),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(tmp_path, name):
    _, result = there_and_back([ARRAYS[name]], tmp_path)
    np.testing.assert_array_equal(result[0], ARRAYS[name])
    assert result[0].dtype == ARRAYS[name].dtype


def test_a_nested_request(tmp_path):
    frames = torch.randint(0, 255, (4, 3, 8, 8), dtype=torch.uint8)
    value = {
        "prompt": "text",
        "multi_modal_data": {"video": [(frames, {"fps": 2.0, "frames_indices": [0, 1]})]},
        "ids": list(range(100)),
        "same": [frames, frames],
        "array": np.arange(5, dtype=np.int16),
        "none": None,
    }
    _, result = there_and_back(value, tmp_path)
    video, metadata = result["multi_modal_data"]["video"][0]
    assert torch.equal(video, frames)
    assert metadata == {"fps": 2.0, "frames_indices": [0, 1]}
    assert result["same"][0] is result["same"][1]
    assert np.array_equal(result["array"], value["array"])
    assert (result["prompt"], result["ids"], result["none"]) == ("text", value["ids"], None)


def test_arrays_do_not_go_through_the_pipe(tmp_path):
    frames = torch.randint(0, 255, (40, 3, 224, 224), dtype=torch.uint8)
    parcel, result = there_and_back({"frames": frames}, tmp_path)
    assert len(pickle.dumps(parcel)) < 1000
    assert parcel.num_bytes == pytest.approx(frames.numel(), abs=1000)
    assert torch.equal(result["frames"], frames)


def test_many_arrays_keep_their_places(tmp_path):
    tensors = [torch.full((size,), size, dtype=torch.int16) for size in range(1, 200)]
    _, result = there_and_back(tensors, tmp_path)
    assert len(result) == 199
    assert all(map(torch.equal, result, tensors))


def test_what_arrives_can_be_changed(tmp_path):
    _, result = there_and_back(torch.zeros(10), tmp_path)
    result += 1
    assert result.sum() == 10


def test_an_arrived_tensor_outlives_its_file(tmp_path):
    """The file is gone at once, so a killed receiver leaves nothing behind."""
    parcel = pack([torch.arange(1000), torch.arange(5)], tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    first, _ = unpack(parcel)
    assert list(tmp_path.iterdir()) == []
    assert first.sum() == 499500


def test_what_cannot_be_packed_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match="cannot pickle 'generator' object"):
        pack({"frames": torch.zeros(1000), "bad": (x for x in [])}, tmp_path)
    assert list(tmp_path.iterdir()) == []
