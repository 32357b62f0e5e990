"""What `mmjax data inspect` prints."""

from mmjax.data import Caption, Data, Digits, Folder, Normalise, Resize, WordPiece, describe


def test_describe_shows_what_the_batch_holds():
    data = Data(Digits(), (Resize((4, 6)), Normalise(), Caption(("the digit {}",))), batch_size=8, max_length=10)
    dataset = data.build(WordPiece().train(data.texts()), 0)
    lines = describe(dataset).splitlines()
    batch = dataset.batch(0)
    assert lines[0] == f"records      1149, fingerprint {dataset.fingerprint}"
    assert lines[1] == "batch        8 rows, 143.6 steps an epoch"
    assert lines[2] == "classes      10: zero, one, two, three, four, five, six, seven, eight, nine"
    assert any(line.startswith("image        [8, 4, 6, 3] float32, -1 to") for line in lines)
    label = batch["label"]
    assert f"label        [8] int32, {label.min()} to {label.max()}, {len(set(label.tolist()))} different" in lines
    assert "text_mask    [8, 10] bool, 50.0% true" in lines and "padding      50.0% of the tokens" in lines
    assert f"             'the digit {dataset.classes[label[0]]}'" in lines
    assert "truncated    0 text(s) met so far" in lines and lines[-1] == "unreadable   0 record(s) met so far"


def test_describe_names_unreadable_files(image_folder):
    bad_file = image_folder / "cat" / "00.png"
    bad_file.write_bytes(b"broken")
    data = Data(Folder(str(image_folder), "all"), (Normalise(),), batch_size=20, bad_record_limit=0.1)
    assert describe(data.build(None, 0)).splitlines()[-1] == f"             {bad_file}: not an image"
