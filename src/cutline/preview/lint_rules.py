"""The rules of `cutline.preview.lint`: what each fault is called, what is said of it and how one gets out of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from cutline.preview import several

EXAMPLES = 3
"""Cases that a finding names."""


@dataclass(frozen=True)
class Finding:
    """One fault, with all its cases."""

    code: str
    where: str
    """The place in the config, or the file."""
    what: str
    way_out: str
    lost: bool
    """Whether something is lost, wrong, or stops the run. The others are worth knowing."""


@dataclass(frozen=True)
class Rule:
    """What there is to say of a fault."""

    what: str
    """With `{count:noun}` for the number of cases, and other values of the first."""
    way_out: str
    lost: bool = True


RULES = {
    # the config
    "idle_key": Rule(
        "{keys}: without effect, since no subset is a folder of pictures with sidecars",
        "leave it out; the metadata_file says the captions",
        lost=False,
    ),
    "max_token_length": Rule(
        "--max_token_length {given} is none that the trainers know", "say 150 or 225, or leave it out for 75"
    ),
    "relative_path": Rule(
        "{count:path} would not be found: relative paths begin where the trainer is started, "
        "and there is something of that name only beside the config",
        "start the trainer in the config's folder, or write absolute paths",
    ),
    "missing_folder": Rule("{count:image_dir} that cannot be read", "correct the path"),
    "missing_metadata": Rule("{count:metadata_file} that cannot be read", "correct the path"),
    "subset_twice": Rule(
        "{count:subset} named before in the same dataset; the trainers take the first and skip the rest",
        "raise num_repeats of the first, or make another [[datasets]]",
    ),
    "same_picture": Rule(
        "{count:picture} that another subset of the same dataset names alike: the trainers keep one of each name, so "
        "only what the last subset says of it is trained on",
        "a [[datasets]] for each of the subsets",
    ),
    "no_repeats": Rule("{count:subset} with num_repeats below 1, which the trainers skip", "num_repeats = 1"),
    "no_pictures": Rule("{count:subset} without any picture, which the trainers skip", "correct the path"),
    "bucket_bounds": Rule(
        "resolution {given} does not fit min_bucket_reso, max_bucket_reso and bucket_reso_steps, so the trainers stop",
        "set min_bucket_reso at most to the shorter, max_bucket_reso at least to the longer side, and "
        "bucket_reso_steps to 64",
    ),
    "no_resolution": Rule(
        "{count:dataset} without resolution: the command line says it, so no buckets are told here",
        "say resolution = … in [general], or here what --resolution will be",
        lost=False,
    ),
    "no_buckets": Rule(
        "{count:picture} of another shape than {given}: without enable_bucket what is over is cut off",
        "enable_bucket = true in [general], or --enable_bucket",
        lost=False,
    ),
    # what is done to captions
    "keep_separator_leaks": Rule(
        "keep_tokens_separator {given} without shuffle_caption, caption_tag_dropout_rate or token_warmup_step "
        "is not taken out: it is trained on as text, here in {count:text}",
        "leave the separator out of config and captions, or set shuffle_caption = true",
    ),
    "keep_tokens_idle": Rule(
        "keep_tokens without shuffle_caption, caption_tag_dropout_rate or token_warmup_step does nothing",
        "leave it out, or set shuffle_caption = true",
        lost=False,
    ),
    "keep_tokens_ignored": Rule(
        "keep_tokens counts only in texts without keep_tokens_separator, where both are set",
        "use one of the two",
        lost=False,
    ),
    "prefix_fuses": Rule(
        "caption_prefix and caption_suffix are joined by a space alone, so one without a comma becomes one tag with "
        "its neighbour, here in {count:text}",
        'end the prefix with the separator, and begin the suffix with it: caption_prefix = "masterpiece,"',
    ),
    "prefix_first_line": Rule(
        "caption_prefix stands only before the first line, caption_suffix only after the last, and one line is drawn: "
        "{count:text} of several lines",
        "write prefix and suffix into each line",
    ),
    "every_n_with_workers": Rule(
        "caption_dropout_every_n_epochs: the first batch of each of the {workers} workers goes by a stale epoch and "
        "loses its captions, in every epoch, whatever the number is",
        "use caption_dropout_rate, or --max_data_loader_n_workers 0",
    ),
    "shared_random": Rule(
        "all {workers} workers draw the same random numbers, so shuffles and dropouts come out alike in groups",
        "--max_data_loader_n_workers 1, or bake the draws into several metadata files",
        lost=False,
    ),
    "separator_not_comma": Rule(
        "caption_separator {given}: tags that are shuffled or dropped are joined again with ', ', whatever stood there",
        'nothing, if that is wanted; else caption_separator = ","',
        lost=False,
    ),
    "separator_odd": Rule(
        "caption_separator {given} stands between caption and tags and does not shuffle them",
        'caption_separator = ","',
        lost=False,
    ),
    "separator_empty": Rule("an empty caption_separator stops the run at the first text", 'caption_separator = ","'),
    "separator_backslash": Rule(
        "caption_separator is the two characters \\n and no line break", 'write "\\n" in double quotes'
    ),
    "te_cache_refused": Rule(
        "the trainers refuse to cache text-encoder outputs with {given}",
        "leave it out, or leave --cache_text_encoder_outputs out",
    ),
    "te_cache_ignores": Rule(
        "cached text-encoder outputs are of the text as it was loaded: these settings have no effect, in "
        "{count:subset}",
        "leave --cache_text_encoder_outputs out, or write prefix, suffix and one choice of each wildcard into texts",
    ),
    "te_cache_lines": Rule(
        "{count:text} of several lines: the text-encoder cache holds all of them with their line breaks",
        "write one line each",
    ),
    "te_cache_older": Rule(
        "{count:text-encoder cache} older than the words of its picture: the trainers take it for current by its name, "
        "in every run that caches text-encoder outputs on disk",
        "delete the files *_te_outputs.npz and *_te.npz, so that they are made again",
    ),
    "te_cache_unknown": Rule(
        "{count:text-encoder cache} from an earlier run: nothing in it says of which text, prefix, model and length "
        "it was made, and it is used without a question",
        "delete the files *_te_outputs.npz and *_te.npz after any change of those",
        lost=False,
    ),
    # texts
    "wildcard_tag_only": Rule(
        "{count:entry} with tags and no caption: with enable_wildcard the tags are lost and the text is empty",
        "enable_wildcard = false for these, or write the tags into caption",
    ),
    "tags_after_newline": Rule(
        "{count:entry} whose tags come after a line break: without enable_wildcard only the first line is trained on, "
        "so the tags are lost",
        'put the caption into one line (cutline export with line_breaks = "space"), or enable_wildcard = true',
    ),
    "lines_lost": Rule(
        "{count:text} of several lines: without enable_wildcard only the first is trained on",
        "put the text into one line, or enable_wildcard = true to draw one",
    ),
    "blank_line_drawn": Rule(
        "{count:text} with blank lines: each is drawn as often as another line, and the text is then empty",
        "take the blank lines out",
    ),
    "trailing_separator": Rule(
        "{count:entry} with empty tags: with enable_wildcard a separator is left at the end",
        "leave tags out where there are none",
        lost=False,
    ),
    "leftovers": Rule(
        "{count:text} with signs that no option takes out, so the model learns them",
        "take them out of the texts; {{a|b}} needs enable_wildcard, and does not nest",
    ),
    "bom": Rule("{count:text} with a byte-order mark, which stays in the caption", "save as UTF-8 without a mark"),
    "doubled": Rule(
        "{count:entry} whose caption is its tags: both are joined, so the model reads every tag twice",
        "leave caption or tags out (cutline export kohya does not let tags stand in for captions)",
    ),
    "empty_entry": Rule(
        "{count:entry} without caption and tags: trained on with an empty text", "leave them out, or caption them"
    ),
    "empty_first_line": Rule("{count:text} whose first line is blank: the text is empty", "take the blank line out"),
    # folders
    "no_sidecar": Rule(
        "{count:picture} without {given} file and without class_tokens: trained on with an empty text",
        "caption them, or say class_tokens",
    ),
    "extension_mismatch": Rule(
        "{count:picture} whose words are in a file of another extension than {given}, and are not read",
        'say caption_extension = ".txt" (or what they have)',
    ),
    "zero_byte": Rule("{count:sidecar} of 0 bytes, at which the trainers stop", "delete them, or caption the pictures"),
    "not_utf8": Rule(
        "{count:sidecar} that is not UTF-8, or may not be read, at which the trainers stop", "save as UTF-8"
    ),
    "underscore_fallback": Rule(
        "{count:picture} without a sidecar of its own gets that of another name: the trainers drop the last four "
        "parts between underscores, of the whole path",
        "caption them, or rename the folder or the pictures",
    ),
    "missed_extension": Rule(
        "{count:picture} that the trainers do not see: .Jpg and the like, and formats they do not list",
        "rename to lower case, or convert",
    ),
    "subfolders": Rule(
        "{count:sub-folder} with pictures that are not read; only the folder itself is",
        "a subset for each, or move the pictures up",
    ),
    "beside_numbered": Rule(
        "{count:picture} beside folders named 10_words: --train_data_dir reads only those folders",
        "move them into such a folder",
    ),
    "unreadable_picture": Rule("{count:picture} that cannot be opened, at which the trainers stop", "take them out"),
    "no_bucket": Rule("{count:picture} without any bucket, at which the trainers stop", "take them out"),
    # metadata_cache.json
    "cache_info_split": Rule(
        "cache_info with validation_split: pictures get the captions of other pictures",
        "cache_info = false, and delete metadata_cache.json",
    ),
    "cache_info_stale": Rule(
        "{count:picture} whose words have changed since metadata_cache.json was written; the old ones are used",
        "delete metadata_cache.json",
    ),
    "cache_info_part": Rule(
        "{count:picture} that metadata_cache.json does not list and that is therefore not trained on; it is written "
        "once, and under validation_split it lists only a part",
        "delete metadata_cache.json",
    ),
    "cache_info_gone": Rule(
        "{count:picture} that metadata_cache.json lists and that is not there any more", "delete metadata_cache.json"
    ),
    # validation
    "validation_share": Rule(
        "validation_split {given} is no share of the pictures",
        "a number from 0 up to, and not, 1: validation_split = 0.1",
    ),
    "validation_overlap": Rule(
        "validation_split without validation_seed: training and validation shuffle by themselves, so pictures are in "
        "both and others in none",
        "validation_seed = 42 (any number)",
    ),
    "validation_rounding": Rule(
        "{count:subset} whose validation_split is rounded up twice: one picture is trained on and validated",
        "a share for which pictures times validation_split is a whole number",
    ),
    "validation_none": Rule(
        "{count:subset} of which validation_split, rounded, leaves no picture to validate",
        "a greater share: one for which pictures times validation_split is a whole number",
    ),
    "validation_ignored": Rule(
        "{count:dataset} of metadata with validation_split, which is ignored: the validation set is the whole "
        "training set",
        "leave the pictures for validation out of the metadata, and validate on a dataset of their own",
    ),
    # metadata
    "no_latents_cache": Rule(
        "{count:dataset} of metadata without --cache_latents: fine_tune.py, sdxl_train.py, flux_train.py, "
        "sd3_train.py, lumina_train.py and anima_train.py stop with AttributeError (train_network.py does not)",
        "--cache_latents",
    ),
    "broken_metadata": Rule("{count:metadata file} that cannot be read", "mend it, or make it anew"),
    "metadata_bom": Rule("{count:metadata file} with a byte-order mark, at which the trainers stop", "save it without"),
    "bad_entries": Rule("{count:entry} that is none, at which the trainers stop", "mend it"),
    "not_text": Rule(
        "{count:entry} whose caption or tags are no text (a list, a number), at which the trainers stop",
        'write tags as one text: "1girl, solo"',
    ),
    "bad_image_size": Rule("{count:entry} whose image_size is no [width, height]", "mend it, or leave it out"),
    "ignored_fields": Rule(
        "{count:entry} with fields that today's trainers do not read: {given}",
        "they want image_size, and find latents by the name of the picture",
        lost=False,
    ),
    "stem_keys": Rule(
        "{count:entry} named without a picture's extension, as older tools do; today's trainers cannot load them",
        "name them by their paths with extension: cutline export kohya does so",
    ),
    "no_image_dir": Rule(
        "{count:entry} named by a relative path, and the subset has no image_dir: the trainers stop",
        "image_dir = the folder that they are relative to",
    ),
    "missing_pictures": Rule(
        "{count:entry} whose picture is not there, at which the trainers stop", "correct image_dir, or take them out"
    ),
    "npz_opened_as_image": Rule(
        "{count:entry} without image_size whose latents are there: from the second run on the .npz is opened as a "
        "picture, and the run stops",
        "write image_size (cutline export kohya does)",
    ),
    "npz_replaces_picture": Rule(
        "{count:entry} without image_size whose latents are there: the .npz takes the place of the picture. SD and "
        "SDXL survive it; text-encoder caches get other names",
        "write image_size (cutline export kohya does)",
        lost=False,
    ),
    "no_image_size": Rule(
        "{count:entry} without image_size: the trainers open each picture for it, and compare each with every .npz, "
        "here about {given}",
        "write image_size (cutline export kohya does)",
        lost=False,
    ),
    "memory": Rule(
        "about {given} of memory for {count:entry}, in every process, and its workers too",
        "fewer processes and workers, or several smaller runs",
        lost=False,
    ),
}


class _Count(int):
    """A number that is written with its noun: `{count:picture}` is `1 picture` or `3 pictures`."""

    def __format__(self, noun: str) -> str:
        return several(int(self), noun)


@dataclass
class _Cases:
    """What is known of one rule that was met."""

    values: dict[str, Any]
    count: int = 0
    places: dict[str, None] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    lost: bool = False


class Notes:
    """The rules that were met."""

    def __init__(self) -> None:
        self._cases: dict[str, _Cases] = {}
        self._plain: list[Finding] = []

    def add(
        self, code: str, where: str, example: str = "", *, lost: bool | None = None, count: int = 1, **values: Any
    ) -> None:
        """Count a case. Where `lost` is said, it stands above the rule's own."""
        cases = self._cases.setdefault(code, _Cases(values))
        cases.count += count
        cases.lost |= RULES[code].lost if lost is None else lost
        if len(cases.places) <= EXAMPLES:
            cases.places[where] = None
        if example and len(cases.examples) < EXAMPLES:
            cases.examples.append(os.fsencode(example).decode("utf-8", "backslashreplace"))  # names may be no UTF-8

    def plain(self, finding: Finding) -> None:
        """Take a finding as it is."""
        self._plain.append(finding)

    def findings(self) -> tuple[Finding, ...]:
        """All findings, those first by which something is lost."""
        found = [*self._plain, *(self._finding(code, self._cases[code]) for code in RULES if code in self._cases)]
        return tuple(sorted(found, key=lambda finding: not finding.lost))

    @staticmethod
    def _finding(code: str, cases: _Cases) -> Finding:
        rule = RULES[code]
        what = rule.what.format(count=_Count(cases.count), **cases.values)
        if cases.examples:
            what += f": {'; '.join(cases.examples)}{' …' if cases.count > len(cases.examples) else ''}"
        places = list(cases.places)
        where = ", ".join(places[:EXAMPLES]) + (" …" if len(places) > EXAMPLES else "")
        return Finding(code, where, what, rule.way_out.format(), cases.lost)
