"""What is said of optional packages that are missing."""

from models.extras import how_to_install


def test_the_packages_of_an_extra_are_named() -> None:
    assert how_to_install("s3").startswith("pip install 'boto3>=")
    assert {word.strip("'").partition(">")[0] for word in how_to_install("postgres").split()[2:]} == {
        "psycopg[binary]",
        "psycopg-pool",
    }
    assert how_to_install("of another version") == "pip install 'fluxserve[of another version]'"
