"""A few pages in three languages as TFDS would have prepared them of mC4."""

from ldro_jax.tasks import mc4

NUM_PAGES, NUM_FILES, NUM_HELD_OUT = 24, 3, 9
# By mC4's names.
WORDS = {"sw": "habari", "iw": "שלום", "zh": "你好"}


def pages_of(name, split="train"):
    count = NUM_PAGES if split == "train" else NUM_HELD_OUT
    return [f"{name} {split} {n}: {WORDS[name] * (n * 7919 % 13)}\n." for n in range(count)]


def write_split(tfds, folder, name, files):
    """Files of examples as TFDS writes them, and what it notes about them."""
    import tensorflow as tf

    features = features_of(tfds)
    for number, pages in enumerate(files):
        path = folder / f"c4-{name}.tfrecord-{number:05d}-of-{len(files):05d}"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for page in pages:
                example = {"text": page, "url": "http://", "timestamp": "2022-08-01T00:00:00Z"}
                example |= {"content-type": "text/plain", "content-length": str(len(page))}
                writer.write(features.serialize_example(example))
    return tfds.core.SplitInfo(
        name=name,
        shard_lengths=[len(pages) for pages in files],
        num_bytes=sum(len(page.encode()) for pages in files for page in pages),
        filename_template=tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name="c4", filetype_suffix="tfrecord"
        ),
    )


def features_of(tfds):
    names = ("text", "url", "content-type", "content-length", "timestamp")
    return tfds.features.FeaturesDict({name: tfds.features.Text() for name in names})


def make_data(tfds, root, names=tuple(WORDS), num_held_out=NUM_HELD_OUT, features=None):
    folder = root / "c4" / "multilingual" / mc4.VERSION
    folder.mkdir(parents=True)
    splits = []
    for name in names:
        pages = pages_of(name)
        files = [pages[number::NUM_FILES] for number in range(NUM_FILES)]
        held_out = [pages_of(name, "validation")[:num_held_out]]
        splits.append(write_split(tfds, folder, name, files))
        splits.append(write_split(tfds, folder, f"{name}-validation", held_out))
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features or features_of(tfds),
        split_infos=splits,
        check_data=False,
    )
    return root
