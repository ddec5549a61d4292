from efface import errors


def test_unknown_names_the_nearest_match_and_what_is_known():
    error = errors.unknown("method", "ucee", ["uce", "esd"])
    assert isinstance(error, errors.UnknownName)
    assert str(error) == "unknown method 'ucee'; did you mean 'uce'? (known: esd, uce)"


def test_unknown_without_a_near_match_or_any_known_name():
    assert "did you mean" not in str(errors.unknown("method", "zzz", ["uce"]))
    assert str(errors.unknown("attack", "x", [])) == "unknown attack 'x' (none are known)"


def test_unknown_shortens_long_lists_and_ignores_case():
    message = str(errors.unknown("concept", "CHURCH", ["church", *(f"thing {i}" for i in range(40))]))
    assert "did you mean 'church'?" in message
    assert "and 17 more" in message


def test_every_error_is_one_of_ours():
    own = (errors.UnknownName, errors.BadFile, errors.BadModel, errors.BadEdit, errors.BadInput, errors.WriteError)
    assert all(issubclass(error, errors.EffaceError) for error in own)
