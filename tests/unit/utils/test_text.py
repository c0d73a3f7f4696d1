from prune_lab.utils.text import lines_of, one_line


def test_what_a_terminal_would_obey_is_replaced():
    assert one_line("a\x1b[31mb\nc\u202ed") == "a\ufffd[31mb\ufffdc\ufffdd"
    assert one_line("日本語 é") == "日本語 é"


def test_lines_keep_their_indentation_and_lose_empty_neighbours():
    assert lines_of("\n\n    return x\n\n\n\n\tb  \n \n") == ["    return x", "", "    b"]
    assert lines_of(" Paris.\nIt") == ["Paris.", "It"]
    assert lines_of(" \n") == lines_of("") == []
    assert lines_of("a\rb\x0cc") == ["a", "b", "c"]
