import click
@click.command("convert")
def command():
    """Not yet."""
