"""Film files and their comparison: real ffmpeg, real files, no stand-ins."""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from longtake.pipeline.film.compare import compare_films, compare_frames
from longtake.pipeline.film.encoder import check_encoder
from longtake.pipeline.film.read import probe, read_frames, read_last
from longtake.pipeline.film.retime import retime
from longtake.pipeline.film.stills import SHORT_SIDE, ContactSheet
from longtake.pipeline.film.write import EncodingError, FilmWriter, GrowingFilm
from numpy.typing import NDArray
from PIL import Image

from same import slope

RED, GREY = (255, 0, 0), (128, 128, 128)


def smooth_clip(num_frames: int, width: int, height: int) -> NDArray[np.uint8]:
    """[num_frames, height, width, 3]: soft waves that drift, one phase a channel."""
    frame, y, x = np.meshgrid(np.arange(num_frames), np.arange(height), np.arange(width), indexing="ij")
    phase = 2 * np.pi * (x / width + y / height + frame / 24)
    return np.stack([128 + 90 * np.sin(phase + channel) for channel in range(3)], axis=-1).astype(np.uint8)


def flat_clip(num_frames: int, colour: tuple[int, int, int], width: int = 90, height: int = 50) -> NDArray[np.uint8]:
    return np.broadcast_to(np.array(colour, np.uint8), (num_frames, height, width, 3))


def write_film(path: Path, frames: NDArray[np.uint8], fps: float = 16.0, metadata: dict[str, str] | None = None) -> Path:
    with FilmWriter(path, width=frames.shape[2], height=frames.shape[1], fps=fps, metadata=metadata) as film:
        film.write(frames)
    return path


@pytest.mark.parametrize("count", [1, 13, 290, 300])
def test_the_last_frames_are_read_from_the_last_key_frame_on(tmp_path: Path, count: int) -> None:
    """x264 sets a key frame every 250 frames."""
    path = write_film(tmp_path / "film.mp4", smooth_clip(291, 34, 18), fps=24000 / 1001)
    assert (read_last(path, count) == read_film(path)[-count:]).all()


def read_film(path: Path) -> NDArray[np.uint8]:
    return np.concatenate(list(read_frames(path)))


def ffmpeg_pids(folder: Path) -> list[int]:
    """Running ffmpeg processes that were started on a file in `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"ffmpeg" in words[0] and any(word.startswith(os.fsencode(folder)) for word in words):
            found.append(int(entry.name))
    return found


@pytest.mark.parametrize(("width", "height", "num_frames"), [(90, 50, 21), (34, 18, 1), (130, 66, 40), (1920, 1080, 2)])
def test_size_and_frame_count_are_exact(tmp_path: Path, width: int, height: int, num_frames: int) -> None:
    clip = smooth_clip(num_frames, width, height)
    info = probe(write_film(tmp_path / "film.mp4", clip))
    assert (info.width, info.height, info.num_frames, info.fps) == (width, height, num_frames, 16.0)
    assert [len(frames) for frames in read_frames(tmp_path / "film.mp4", chunk=16)] == [min(16, num_frames - i) for i in range(0, num_frames, 16)]
    assert os.listdir(tmp_path) == ["film.mp4"]


def test_chunks_and_memory_layout_do_not_matter(tmp_path: Path) -> None:
    clip = smooth_clip(10, 90, 50)
    with FilmWriter(tmp_path / "chunks.mp4", width=90, height=50, fps=16) as film:
        film.write(clip[:1])
        film.write(clip[1:1])
        film.write(np.asfortranarray(clip[1:]))
    write_film(tmp_path / "whole.mp4", clip)
    assert (read_film(tmp_path / "chunks.mp4") == read_film(tmp_path / "whole.mp4")).all()


def test_tags_rate_and_metadata(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metadata = {"title": "Ünïcode, 'quotes'; a=b # \\", "comment": "two\nlines", "longtake_seed": "42"}
    with caplog.at_level(logging.WARNING):
        info = probe(write_film(tmp_path / "film.mp4", smooth_clip(5, 90, 50), fps=24000 / 1001, metadata=metadata))
    assert (info.color_space, info.color_primaries, info.color_trc, info.color_range) == (1, 1, 1, 1)
    assert (info.codec, info.pixel_format) == ("h264", "yuv420p")
    assert info.fps == pytest.approx(24000 / 1001, abs=1e-9)
    assert metadata.items() <= info.metadata.items()
    assert not caplog.records, "ffmpeg had nothing to warn of"
    boxes = (tmp_path / "film.mp4").read_bytes()
    assert boxes.index(b"moov") < boxes.index(b"mdat"), "the index comes first, so a browser can start at once"


def test_colours_survive_the_round_trip(tmp_path: Path) -> None:
    luma = {}
    for name, colour in (("red", RED), ("grey", GREY)):
        path = write_film(tmp_path / f"{name}.mp4", flat_clip(4, colour))
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
            luma[name] = float(frame.to_ndarray()[: frame.height].mean())
        assert np.abs(read_film(path).astype(int) - colour).max() <= 3
    assert luma["red"] == pytest.approx(63, abs=1), "BT.601 would give 81"
    assert luma["grey"] == pytest.approx(126, abs=1), "full range would give 128"


def test_smooth_clip_keeps_its_quality(tmp_path: Path) -> None:
    clip = smooth_clip(24, 130, 66)
    result = compare_frames([clip], read_frames(write_film(tmp_path / "film.mp4", clip), chunk=7))
    print(f"round trip: {result}")
    assert result.num_frames == 24
    assert result.psnr > 42
    assert result.worst_psnr > 40
    assert result.ssim > 0.97


def test_round_trip_neither_darkens_nor_shifts_colours(tmp_path: Path) -> None:
    clip = smooth_clip(8, 130, 66)
    back = read_film(write_film(tmp_path / "film.mp4", clip))
    bias = (back.astype(float) - clip).mean()
    print(f"round trip: mean change {bias:.2f} levels")
    assert abs(bias) < 0.75

    line = np.array(flat_clip(2, GREY, width=96, height=64))
    line[:, :, 40] = (200, 100, 60)
    with av.open(str(write_film(tmp_path / "line.mp4", line))) as container:
        plane = next(container.decode(video=0)).planes[1]
        blue = np.frombuffer(bytes(plane), np.uint8).reshape(plane.height, plane.line_size)[16, 18:23].astype(int)
    assert np.abs(blue[[0, 1, 3, 4]] - 128).max() <= 2, "left-sited chroma: an even column belongs to one sample"
    assert blue[2] < 120


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("num_chunks", [0, 1])
def test_exception_leaves_nothing(tmp_path: Path, error: type[BaseException], num_chunks: int) -> None:
    with pytest.raises(error), FilmWriter(tmp_path / "film.mp4", width=90, height=50, fps=16) as film:
        for _ in range(num_chunks):
            film.write(smooth_clip(30, 90, 50))
        assert len(ffmpeg_pids(tmp_path)) == 1
        raise error
    assert not os.listdir(tmp_path)
    assert not ffmpeg_pids(tmp_path)


def test_interrupt_of_the_whole_group_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, numpy as np; from pathlib import Path; from longtake.pipeline.film.write import FilmWriter\n"
        "with FilmWriter(Path(sys.argv[1]), width=320, height=240, fps=16) as film:\n"
        "    while True: film.write(np.zeros((16, 240, 320, 3), np.uint8)); print('written', flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "film.mp4")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0) as child:
        assert child.stdout is not None
        for _ in range(3):
            assert child.stdout.readline() == b"written\n"
        os.killpg(child.pid, signal.SIGINT)
        _, errors = child.communicate(timeout=120)
    assert errors.rstrip().endswith(b"KeyboardInterrupt")
    assert not os.listdir(tmp_path)
    assert not ffmpeg_pids(tmp_path)


def test_earlier_film_survives_a_failed_rewrite(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4", flat_clip(6, GREY))
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="midway"), FilmWriter(path, width=90, height=50, fps=16) as film:
        film.write(smooth_clip(12, 90, 50))
        raise RuntimeError("midway")
    with pytest.raises(ValueError, match="no frame was written"), FilmWriter(path, width=90, height=50, fps=16):
        pass
    assert path.read_bytes() == before
    write_film(path, smooth_clip(3, 130, 66))
    assert probe(path).num_frames == 3
    assert os.listdir(tmp_path) == ["film.mp4"]


def test_a_growing_film_is_played_while_it_is_written_and_after_a_kill(tmp_path: Path) -> None:
    clip, path = smooth_clip(75, 90, 50), tmp_path / "film.mp4"
    with pytest.raises(EncodingError), GrowingFilm(path, width=90, height=50, fps=16) as film:
        for end in (25, 50, 75):
            film.write(clip[end - 25 : end])
            until = time.monotonic() + 20  # ffmpeg needs a moment
            while (not path.exists() or len(_playable(path)) < end - 1) and time.monotonic() < until:
                time.sleep(0.05)
            assert compare_frames([clip[: end - 1]], [_playable(path)]).psnr > 38
        (pid,) = ffmpeg_pids(tmp_path)
        os.kill(pid, signal.SIGKILL)
        for _ in range(600):
            film.write(clip)
            time.sleep(0.01)
    assert compare_frames([clip[:74]], [_playable(path)[:74]]).psnr > 38


def _playable(path: Path) -> NDArray[np.uint8]:
    """The frames of a film that is being written; none while its head is not there."""
    try:
        return read_film(path)
    except ValueError:
        return np.zeros((0, 50, 90, 3), np.uint8)


def test_two_writers_of_one_film_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with FilmWriter(path, width=90, height=50, fps=16) as first, FilmWriter(path, width=90, height=50, fps=16) as second:
        for film, num_frames in ((first, 3), (second, 5)):
            film.write(smooth_clip(num_frames, 90, 50))
    assert probe(path).num_frames == 3, "the first one was the last to end"
    assert os.listdir(tmp_path) == ["film.mp4"]


@pytest.mark.parametrize("num_frames", [1, 17])
@pytest.mark.parametrize("fps", [Fraction(24), Fraction(24000, 1001), Fraction(25, 2)])
def test_a_film_gets_another_frame_rate_and_keeps_all_else(tmp_path: Path, num_frames: int, fps: Fraction) -> None:
    source = write_film(tmp_path / "film.mp4", smooth_clip(num_frames, 90, 50), metadata={"title": "t", "comment": '{"seed": 1}'})
    retime(source, tmp_path / "other.mp4", fps)
    before, after = probe(source), probe(tmp_path / "other.mp4")
    for tag in ("encoder", "major_brand", "minor_version", "compatible_brands"):
        before.metadata.pop(tag), after.metadata.pop(tag)
    assert replace(after, fps=before.fps) == before
    frames = [np.concatenate(list(read_frames(path))) for path in (source, tmp_path / "other.mp4")]
    assert (frames[0] == frames[1]).all()
    with av.open(str(tmp_path / "other.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == fps
        assert Fraction(stream.duration or 0) * (stream.time_base or 0) == num_frames / fps
    assert sorted(os.listdir(tmp_path)) == ["film.mp4", "other.mp4"]


def test_what_is_no_film_gets_no_frame_rate(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"no film")
    with pytest.raises(ValueError, match="cannot be read as a film"):
        retime(tmp_path / "film.mp4", tmp_path / "film.mp4", Fraction(24))
    assert (tmp_path / "film.mp4").read_bytes() == b"no film"
    assert os.listdir(tmp_path) == ["film.mp4"]


def test_looking_for_an_encoder_imports_nothing_slow() -> None:
    """Every job looks for one before it imports what renders it."""
    program = "import sys; from longtake.pipeline.film import encoder; print({'av', 'numpy', 'PIL', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_missing_encoder_is_found_before_a_film_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    check_encoder()
    for program, message in (("/nowhere/ffmpeg", "ffmpeg does not run"), ("/bin/true", "'/bin/true' lacks libx264")):
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", program)
        with pytest.raises(ValueError, match=message):
            check_encoder()


def test_ffmpeg_failing_is_told_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(EncodingError, match="No such file or directory"):
        write_film(tmp_path / "missing" / "film.mp4", smooth_clip(3, 90, 50))
    with (
        pytest.raises(EncodingError, match=r"ended after \d+ frames"),
        FilmWriter(tmp_path / "film.mp4", width=320, height=240, fps=16) as film,
    ):
        film.write(smooth_clip(2, 320, 240))
        (pid,) = ffmpeg_pids(tmp_path)
        os.kill(pid, signal.SIGKILL)
        for _ in range(6000):  # as long as a busy machine takes to end it
            film.write(smooth_clip(1, 320, 240))
            time.sleep(0.01)
    assert not os.listdir(tmp_path)


def test_ffmpeg_killed_after_the_last_frame_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EncodingError), FilmWriter(tmp_path / "film.mp4", width=90, height=50, fps=16) as film:
        film.write(smooth_clip(2, 90, 50))
        (pid,) = ffmpeg_pids(tmp_path)
        os.kill(pid, signal.SIGKILL)
    assert not os.listdir(tmp_path)


def test_standard_error_is_given_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EncodingError):
        write_film(tmp_path / "missing" / "film.mp4", smooth_clip(3, 90, 50))
    os.write(2, b"still here\n")
    assert capfd.readouterr().err == "still here\n"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 91}, "width=91.*90"),
        ({"height": 0}, "height=0.*2"),
        ({"fps": 0.0}, "fps=0"),
        ({"fps": math.nan}, "fps=nan"),
        ({"path": Path("film.avi")}, "film.avi"),
        ({"metadata": {"a=b": "c"}}, "a=b"),
    ],
)
def test_impossible_films_are_refused(tmp_path: Path, wrong: dict[str, object], message: str) -> None:
    arguments = {"path": tmp_path / "film.mp4", "width": 90, "height": 50, "fps": 16.0, **wrong}
    with pytest.raises(ValueError, match=message):
        FilmWriter(**arguments)  # type: ignore[arg-type]
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("frames", [np.zeros((2, 90, 50, 3), np.uint8), np.zeros((50, 90, 3), np.uint8), np.zeros((2, 50, 90, 3), np.float32)])
def test_wrong_frames_are_refused(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"num_frames, 50, 90, 3"), FilmWriter(tmp_path / "film.mp4", width=90, height=50, fps=16) as film:
        film.write(frames)
    assert not os.listdir(tmp_path)


def peak_memory(path: Path, num_frames: int) -> int:
    """Bytes that a process of its own needs at most to write and read a film and its contact sheet."""
    program = (
        "import sys, numpy as np; from pathlib import Path; from longtake.pipeline.film.read import read_frames\n"
        "from longtake.pipeline.film.stills import ContactSheet; from longtake.pipeline.film.write import FilmWriter\n"
        "path, num_frames = Path(sys.argv[1]), int(sys.argv[2])\n"
        "sheet = ContactSheet(num_frames)\n"
        "chunks = (np.full((8, 90, 160, 3), i % 200, np.uint8) for i in range(num_frames // 8))\n"
        "with FilmWriter(path, width=160, height=90, fps=16) as film:\n"
        "    for frames in chunks: film.write(frames); sheet.add(frames)\n"
        "sheet.save(path.with_suffix('.jpg'))\n"
        "assert sum(len(frames) for frames in read_frames(path)) == num_frames\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    result = subprocess.run([sys.executable, "-c", program, str(path), str(num_frames)], capture_output=True, text=True, check=True)
    return int(result.stdout) * 1024


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    lengths, pixels = (200, 800, 1400, 2000), 160 * 90 * 3
    grown = slope(lengths, [peak_memory(tmp_path / f"{length}.mp4", length) for length in lengths])
    assert grown < pixels / 10, f"a frame of {pixels} bytes costs {grown:.0f}"


def grey_film(num_frames: int, width: int = 32, height: int = 18) -> Iterator[NDArray[np.uint8]]:
    """Chunks of 7 frames; a frame's grey value is its index."""
    for start in range(0, num_frames, 7):
        indices = np.arange(start, min(start + 7, num_frames), dtype=np.uint8)
        yield np.broadcast_to(indices[:, None, None, None], (len(indices), height, width, 3))


def load(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
        return picture


def shown_values(path: Path, columns: int, rows: int) -> list[int]:
    """The grey values in the middle of a sheet's cells, row by row."""
    picture = np.asarray(load(path).convert("L"))
    height, width = picture.shape[0] / rows, picture.shape[1] / columns
    return [int(picture[int((row + 0.5) * height), int((column + 0.5) * width)]) for row in range(rows) for column in range(columns)]


def test_contact_sheet_shows_evenly_spaced_frames(tmp_path: Path) -> None:
    sheet = ContactSheet(200, columns=5, rows=2)
    for frames in grey_film(200):
        sheet.add(frames)
    for name in ("sheet.png", "sheet.jpg"):
        sheet.save(tmp_path / name)
    values = shown_values(tmp_path / "sheet.png", 5, 2)
    assert values == [round(i * 199 / 9) for i in range(10)]
    assert np.allclose(shown_values(tmp_path / "sheet.jpg", 5, 2), values, atol=2)
    sheet.thumbnail(tmp_path / "thumbnail.png")
    thumbnail = load(tmp_path / "thumbnail.png")
    assert thumbnail.getpixel((5, 5)) == (66, 66, 66)
    assert min(thumbnail.size) == SHORT_SIDE
    assert thumbnail.width / thumbnail.height == pytest.approx(32 / 18, rel=0.01)
    assert sorted(os.listdir(tmp_path)) == ["sheet.jpg", "sheet.png", "thumbnail.png"]


def test_contact_sheet_of_short_large_and_unfinished_films(tmp_path: Path) -> None:
    short = ContactSheet(3)
    for frames in grey_film(3):
        short.add(frames)
    short.save(tmp_path / "short.png")
    assert shown_values(tmp_path / "short.png", 3, 1) == [0, 1, 2]

    unfinished = ContactSheet(200, columns=5, rows=2)
    for frames in grey_film(35, width=1920, height=1080):
        unfinished.add(frames)
    unfinished.save(tmp_path / "unfinished.png")
    assert shown_values(tmp_path / "unfinished.png", 5, 2)[:2] == [0, 22]
    unfinished.thumbnail(tmp_path / "thumbnail.png")
    thumbnail = load(tmp_path / "thumbnail.png")
    assert (thumbnail.getpixel((5, 5)), thumbnail.size) == ((22, 22, 22), (480, 270))


def test_contact_sheet_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_frames=0"):
        ContactSheet(0)
    sheet = ContactSheet(3)
    with pytest.raises(ValueError, match="no frame"):
        sheet.save(tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="num_frames=3"):
        sheet.add(flat_clip(4, GREY))
    sheet.add(flat_clip(3, GREY))
    with pytest.raises(ValueError, match=r"sheet\.gif"):
        sheet.save(tmp_path / "sheet.gif")
    assert not os.listdir(tmp_path)


def test_film_equals_itself(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4", smooth_clip(20, 90, 50))
    result = compare_films(path, path)
    assert (result.num_frames, result.psnr, result.worst_psnr) == (20, math.inf, math.inf)
    assert result.ssim == pytest.approx(1.0, abs=1e-6)


def test_noisy_clip_has_the_psnr_computed_by_hand() -> None:
    clip = flat_clip(10, GREY)
    noisy = clip.copy()
    noisy[:, ::2] += 4  # half the pixels of every frame: a mean squared error of 8
    noisy[7] = clip[7] - 8  # one frame: 64
    chunks = (noisy[start : start + 3] for start in range(0, 10, 3))
    result = compare_frames([clip[:4], clip[4:]], chunks)
    assert result.psnr == pytest.approx(10 * math.log10(255**2 / ((9 * 8 + 64) / 10)), abs=1e-9)
    assert result.worst_psnr == pytest.approx(10 * math.log10(255**2 / 64), abs=1e-9)
    assert (result.num_frames, result.worst_frame) == (10, 7)
    assert 0 < result.ssim < 1


def test_ssim_of_a_brightness_shift_matches_the_formula() -> None:
    """On flat frames the variances vanish, and SSIM is its luminance term (Wang et al. 2004, eq. 6)."""
    result = compare_frames([flat_clip(2, (100, 100, 100))], [flat_clip(2, (120, 120, 120))])
    constant = (0.01 * 255) ** 2
    assert result.ssim == pytest.approx((2 * 100 * 120 + constant) / (100**2 + 120**2 + constant), abs=3e-4)


def test_unlike_films_are_refused(tmp_path: Path) -> None:
    ten, twelve = (write_film(tmp_path / f"{n}.mp4", smooth_clip(n, 90, 50)) for n in (10, 12))
    wide = write_film(tmp_path / "wide.mp4", smooth_clip(10, 130, 50))
    with pytest.raises(ValueError, match=r"10\.mp4 has 10 frames.*12\.mp4 has 12"):
        compare_films(ten, twelve)
    with pytest.raises(ValueError, match=r"12\.mp4 has 12 frames.*10\.mp4 has 10"):
        compare_films(twelve, ten)
    with pytest.raises(ValueError, match=r"10\.mp4 is 90x50.*wide\.mp4 is 130x50"):
        compare_films(ten, wide)
    with pytest.raises(ValueError, match="no frames"):
        compare_frames([], [])
    with pytest.raises(ValueError, match="float32"):
        compare_frames([flat_clip(2, GREY)], [flat_clip(2, GREY).astype(np.float32)])
    with pytest.raises(ValueError, match="8x50"):
        compare_frames([flat_clip(2, GREY, width=8)], [flat_clip(2, GREY, width=8)])


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mp4", smooth_clip(10, 90, 50))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a film")
    (tmp_path / "cut.mp4").write_bytes(film.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        compare_films(film, broken)
    with pytest.raises(ValueError, match=r"missing\.mp4"):
        compare_films(tmp_path / "missing.mp4", film)
    with pytest.raises(ValueError, match=r"film\.mp4 has 10 frames.*cut\.mp4 has [1-9]|cut\.mp4: cannot be read"):
        compare_films(film, tmp_path / "cut.mp4")
    for path in (broken, tmp_path / "missing.mp4", tmp_path):
        with pytest.raises(ValueError, match=path.name):
            probe(path)
    with pytest.raises(ValueError, match="chunk=0"):
        next(read_frames(film, chunk=0))
